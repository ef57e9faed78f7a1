"""Who is at the other end of a loopback connection: the kubelet's port obeys only its own user.

The API server presents no certificate to kubelets here, and whoever may run commands in pods may do what this user
may. So on a machine that others use as well the kernel is asked to whom the calling socket belongs.
"""

import os
import socket
import struct
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

CONNECTIONS = Path("/proc/net/tcp")


def _encoded(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}:{port:04X}"


def owner(local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """The user id of the socket that is bound to `local` and connected to `remote`."""
    wanted = [_encoded(local), _encoded(remote)]
    for line in CONNECTIONS.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == wanted:
            return int(fields[7])
    return None


@web.middleware
async def own_user_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    assert request.transport is not None
    caller, here = (request.transport.get_extra_info(name) for name in ("peername", "sockname"))
    if owner(caller, here) != os.geteuid():
        raise web.HTTPForbidden(text="this kubelet serves its own user only")
    return await handler(request)
