"""The write gate: at most one operator acts at a time, by a Lease.

Invariant: `check` passes only within two thirds of `lease_seconds` after the start of the last renewal that the API
server confirmed, and says how much of that is left; another operator takes the Lease over only `lease_seconds` after it
last saw it change. So both never write at once, whatever is partitioned, paused or slow; wall clocks don't matter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """This process doesn't hold the Lease (any more), so it may not write."""


class LeaseStore(Protocol):
    """Where the Lease lies. `write` must fail unless it creates the Lease or replaces the one that is given."""

    async def read(self) -> dict[str, Any] | None: ...
    async def write(self, spec: dict[str, Any], *, over: dict[str, Any] | None) -> dict[str, Any]: ...


class LeaseGate:
    """Holds the Lease for this process, or waits for it."""

    def __init__(
        self, store: LeaseStore, *, identity: str, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._deadline: float | None = None
        self._written: dict[str, Any] | None = None
        self._seen: tuple[str, float] = ("", clock())
        self.held = asyncio.Event()

    def check(self) -> float:
        """For how many seconds this process may write; LeaseLostError where it may not."""
        left = 0.0 if self._deadline is None else self._deadline - self._clock()
        if left <= 0:
            raise LeaseLostError(f"{self._identity} doesn't hold the Lease, so nothing is written")
        return left

    async def run(self) -> None:
        """Acquire the Lease, then renew it until it's lost; LeaseLostError is the only way out."""
        while True:
            await self.renew()
            if self._deadline is not None:
                self.check()
            in_trouble = self._deadline is not None and self._written is None
            await asyncio.sleep(self._lease_seconds / (30 if in_trouble else 6))

    async def renew(self) -> None:
        """Try once. Any error is "not renewed". A holder writes over what it wrote last: one request, not two."""
        started, known, self._written = self._clock(), self._written, None
        try:
            async with asyncio.timeout(self._lease_seconds / 3):
                self._written = await self._take(started, known or await self._store.read())
        except Exception as error:
            logger.warning("the Lease wasn't renewed: %s", str(error) or type(error).__name__)
        if self._written is not None:
            self._deadline = started + self._lease_seconds * 2 / 3
            self.held.set()

    async def _take(self, now: float, lease: dict[str, Any] | None) -> dict[str, Any] | None:
        present = (lease or {}).get("spec") or {}
        mine = present.get("holderIdentity") == self._identity
        if lease is not None and present.get("holderIdentity") and not mine:
            if (version := lease["metadata"]["resourceVersion"]) != self._seen[0]:
                self._seen = (version, now)
            if self._deadline is not None or now - self._seen[1] < (present.get("leaseDurationSeconds") or 0):
                return None
        written = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        since = present.get("acquireTime", written) if mine else written
        changes = present.get("leaseTransitions", 0) + (not mine)
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": round(self._lease_seconds)}
        spec |= {"acquireTime": since, "renewTime": written, "leaseTransitions": changes}
        return await self._store.write(spec, over=lease)

    async def release(self) -> None:
        """Let another operator in at once; called when nothing will be written any more."""
        held, self._deadline = self._deadline is not None and self._clock() < self._deadline, None
        try:
            lease = await self._store.read() if held else None
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                await self._store.write({**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}, over=lease)
        except Exception as error:
            logger.warning("the Lease wasn't released, it runs out by itself: %s", error)
