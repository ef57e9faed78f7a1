"""Which classes of requests are in use, and when anybody asked for anything, by the arrivals that gateways count.

Invariant: no clock and no I/O. A class is in use from its first arrival on until none has come for `MEMORY_SECONDS`; an
instance that is seen for the first time counts as having just got all that it counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duet_engine.protocol import GatewayDemand

MEMORY_SECONDS = 3600.0
"""Objectives of a class that asks now and then must not come and go with each of its requests."""


class ClassesInUse:
    """Of one object."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], int] = {}
        self._seen_at: dict[str, float] = {}
        self.asked_at_seconds: float | None = None
        """When a request came, waited or ran last; None before the first look."""

    def see(self, documents: Iterable[GatewayDemand], *, now_seconds: float) -> frozenset[str]:
        """The classes in use with what gateways say now."""
        documents = tuple(documents)
        counted = {(document.instance_id, each.name): each for document in documents for each in document.classes}
        for key, each in counted.items():
            if each.arrivals_total > self._counted.get(key, 0):
                self._seen_at[each.name] = self.asked_at_seconds = now_seconds
        busy = any(document.waiting_requests or document.inflight_requests for document in documents)
        # An operator that has just begun can't know how long it has been quiet.
        if busy or self.asked_at_seconds is None:
            self.asked_at_seconds = now_seconds
        self._counted = {key: each.arrivals_total for key, each in counted.items()}
        self._seen_at = {name: at for name, at in self._seen_at.items() if now_seconds - at < MEMORY_SECONDS}
        return frozenset(self._seen_at)
