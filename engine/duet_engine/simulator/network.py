"""Network adapters: KV goes over the sender's and the receiver's, one piece after the other.

Invariant: an adapter carries one piece at a time, at the rate of the performance model, and pieces of one sender arrive
in order. Workers of a pool may share one.
"""

from __future__ import annotations


class Link:
    """One adapter."""

    __slots__ = ("busy_seconds", "free_at")

    def __init__(self) -> None:
        self.free_at = 0.0
        self.busy_seconds = 0.0


def send(sender: Link, receiver: Link, *, now: float, seconds: float) -> float:
    """When a piece that takes `seconds` has arrived."""
    arrived_at = max(now, sender.free_at, receiver.free_at) + seconds
    sender.free_at = receiver.free_at = arrived_at
    sender.busy_seconds += seconds
    if receiver is not sender:
        receiver.busy_seconds += seconds
    return arrived_at
