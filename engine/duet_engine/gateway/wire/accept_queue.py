"""How long what a new connection sent lay with the kernel until this process accepted it.

A full backlog delays clients by more than one turn of the event loop, and nothing else here would see it.

Invariant: one system call for each connection, none for each request. The kernel counts in ticks of up to 10 ms, so
less than two of them is taken for none.
"""

from __future__ import annotations

import asyncio
import socket
from struct import Struct

BOUNDS_SECONDS = (0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SHORTEST_MILLISECONDS = 20
_LAST_DATA_RECEIVED = Struct("=52xI")
"""Where Linux's `tcp_info` has the milliseconds since the last data came, or since the handshake before any did."""


def waited_seconds(transport: asyncio.BaseTransport) -> float:
    """0 where the system doesn't say."""
    accepted = transport.get_extra_info("socket")
    if accepted is None or not hasattr(socket, "TCP_INFO"):
        return 0.0
    try:
        info = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
    except OSError:  # it is gone already
        return 0.0
    if len(info) < _LAST_DATA_RECEIVED.size:
        return 0.0
    (milliseconds,) = _LAST_DATA_RECEIVED.unpack(info)
    return milliseconds / 1e3 if milliseconds >= _SHORTEST_MILLISECONDS else 0.0
