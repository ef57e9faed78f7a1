"""The control loop: every object has its pass each interval and soon after something happened to it.

Invariant: no object ever has two passes at once; what fails or is slow for one delays only that one; nothing is passed
before everything watched was listed once. A lost Lease ends the loop, and nothing is written after that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from duet_operator.acting import ForeignObjectError
from duet_operator.cluster import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    DUET,
    NETWORK_POLICY,
    POD,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Cluster,
    ClusterError,
    Kind,
)
from duet_operator.controller import Controller, Services
from duet_operator.lease import LeaseLostError
from duet_operator.resources.labels import MANAGED_BY
from duet_operator.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from duet_operator.metrics import Metrics
    from duet_operator.settings import Settings
    from duet_operator.world import Key, World

OWN_SELECTOR = f"{MANAGED_BY}=duet-operator"
CHILD_KINDS = (
    DEPLOYMENT,
    SERVICE,
    SERVICE_ACCOUNT,
    ROLE_BINDING,
    CONFIG_MAP,
    NETWORK_POLICY,
    DISRUPTION_BUDGET,
    POD,
)
"""Pods last: their watch has begun by then, and the longest of all lists needn't be read again for that."""
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 60.0
LONGEST_PASS_SECONDS = 120.0
SAVE_AT_EXIT_SECONDS = 5.0
GATHER_LISTINGS_SECONDS = 5.0
"""Between the first sign that a watch began anew and the list that makes up for it."""

logger = logging.getLogger(__name__)


def selector(kind: Kind) -> str:
    """What the API server is asked for of a kind: our own objects whole, of all others only what we made."""
    return "" if kind is DUET else OWN_SELECTOR


class ControlLoop:
    """Runs a controller for each object in the world."""

    def __init__(self, *, cluster: Cluster, services: Services) -> None:
        self._cluster = cluster
        self._services = services
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._wakes: dict[Key, asyncio.Event] = {}
        self._controllers: dict[Key, tuple[str, Controller]] = {}
        self._turns = Turns(services.settings.concurrent_passes)
        self._failure: asyncio.Future[None] | None = None
        self._unsure: set[str] = set()
        """Kinds whose watch began anew since they were listed last."""
        self._listing_wanted = asyncio.Event()
        self.synchronised = asyncio.Event()

    @property
    def _world(self) -> World:
        return self._services.world

    @property
    def _settings(self) -> Settings:
        return self._services.settings

    @property
    def _metrics(self) -> Metrics:
        return self._services.metrics

    def list_soon(self, kind: str) -> None:
        """The watch of a kind began anew, so something of it may have been missed."""
        self._unsure.add(kind)
        self._listing_wanted.set()

    # --- running ---

    async def run(self) -> None:
        """Until cancelled, or until the Lease is lost, which raises LeaseLostError."""
        self._failure = asyncio.get_running_loop().create_future()
        self._world.on_change(self._wake)
        # Before the first pass, which else would find nobody whom engines may believe.
        await self._services.issuers.refresh()
        endless = (self._relist_for_ever(), self._save_for_ever(), self._services.issuers.run())
        helpers = [asyncio.create_task(each) for each in endless]
        try:
            await asyncio.wait([self._failure, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for done in (self._failure, *helpers):
                if done.done():
                    done.result()
        finally:
            # Nothing begins any more: what fails with the others in one moment would begin anew, again and again.
            self.synchronised.clear()
            self._world.on_change(lambda _key: None)
            await _end([*helpers, *self._tasks.values()])

    async def save_all(self) -> None:
        """Keep all memories; called once nothing else runs, and given up after a few seconds."""
        try:
            async with asyncio.timeout(SAVE_AT_EXIT_SECONDS):
                await asyncio.gather(*(self._save(key) for key in self._controllers))
        except TimeoutError:
            logger.warning("not all memories could be saved within %g s", SAVE_AT_EXIT_SECONDS)

    async def _relist_for_ever(self) -> None:
        everything = (*CHILD_KINDS, DUET)
        await self._relist_at_last(everything)
        self.synchronised.set()
        for key in self._world.duets():
            self._wake(key)
        due = time.monotonic() + self._settings.relist_seconds
        while True:
            try:
                await asyncio.wait_for(self._listing_wanted.wait(), max(due - time.monotonic(), 0.0))
                await asyncio.sleep(GATHER_LISTINGS_SECONDS)
            except TimeoutError:
                due = time.monotonic() + self._settings.relist_seconds
                await self._relist_at_last(everything)
            else:
                self._listing_wanted.clear()
                await self._relist_at_last([kind for kind in everything if kind.name in self._unsure])

    async def _relist_at_last(self, kinds: Sequence[Kind]) -> None:
        """List them, again and again until it succeeds: what a watch missed stays unseen until then."""
        delay = FIRST_BACKOFF_SECONDS
        while True:
            try:
                await self._relist(kinds)
            except ClusterError as error:
                logger.warning("not everything could be listed: %s", error)
            except Exception:
                # Anything else is a defect here, and no object may suffer from it.
                logger.exception("not everything could be listed")
            else:
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_BACKOFF_SECONDS)

    async def _relist(self, kinds: Sequence[Kind]) -> None:
        for kind in kinds:
            # What a watch listed before this has no gap; its sign after this may be one.
            self._unsure.discard(kind.name)
            for namespace in self._settings.namespaces or (None,):
                await self._relist_kind(kind, namespace)
        self._metrics.cached(self._world.counts())

    async def _relist_kind(self, kind: Kind, namespace: str | None) -> None:
        listed: set[tuple[str, str]] = set()
        version = ""
        async for page in self._cluster.pages(kind, namespace=namespace, label_selector=selector(kind)):
            for body in page.items:
                self._world.put(body)
                listed.add((body["metadata"]["namespace"], body["metadata"]["name"]))
            version = page.resource_version
        self._world.forget_unlisted(kind.name, listed, resource_version=version, namespace=namespace)

    # --- passes ---

    def _wake(self, key: Key) -> None:
        """Something happened to this object."""
        if not self.synchronised.is_set():
            return
        self._wakes.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks and self._world.duet(key) is not None:
            self._tasks[key] = task = asyncio.create_task(self._serve(key), name=f"duet {key}")
            task.add_done_callback(lambda done: self._served(key, done))

    async def _serve(self, key: Key) -> None:
        """Passes of one object, until it's gone."""
        failures = 0
        while (duet := self._world.duet(key)) is not None:
            self._wakes[key].clear()
            controller = self._controller(key, duet["metadata"].get("uid", ""))
            async with self._turns.turn():
                started = time.monotonic()
                interval = await self._pass(controller, failures)
            if interval is None:
                failures += 1
                # No early wake after a failure: what fails at once would fail as often as things happen.
                await asyncio.sleep(min(2.0 ** min(failures, 6), LONGEST_BACKOFF_SECONDS))
            else:
                failures = 0
                await self._rest(key, until=started + interval)

    def _controller(self, key: Key, uid: str) -> Controller:
        """The object's controller; another object of the same name starts with no memory of this one."""
        known = self._controllers.get(key)
        if known is None or known[0] != uid:
            known = self._controllers[key] = (uid, Controller(key, self._services))
        return known[1]

    async def _pass(self, controller: Controller, failures: int) -> float | None:
        """One pass; None where it failed."""
        started = time.monotonic()
        interval: float | None = None
        try:
            async with asyncio.timeout(LONGEST_PASS_SECONDS):
                interval = await controller.run_pass()
        except LeaseLostError:
            raise
        except (ClusterError, TimeoutError) as error:
            logger.warning("%s: pass failed: %s", controller.key, str(error) or type(error).__name__)
        except Exception:
            # Anything else is a defect here, and no other object may suffer from it.
            logger.exception("%s: pass failed for the %d. time", controller.key, failures + 1)
        self._metrics.passed(seconds=time.monotonic() - started, failed=interval is None)
        return interval

    async def _rest(self, key: Key, *, until: float) -> None:
        """Until the next pass is due, or a moment after something happened: that moment gathers what comes along."""
        wake = self._wakes[key]
        try:
            async with asyncio.timeout(max(until - time.monotonic(), 0.0)):
                await wake.wait()
                await asyncio.sleep(self._settings.debounce_seconds)
        except TimeoutError:
            return

    def _served(self, key: Key, task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        self._wakes.pop(key, None)
        if self._world.duet(key) is None:
            self._controllers.pop(key, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            if self._failure is not None and not self._failure.done():
                self._failure.set_exception(error)
        elif self._world.duet(key) is not None and not task.cancelled():
            self._wake(key)

    # --- memories ---

    async def _save_for_ever(self) -> None:
        """One after the other, spread over the time that is theirs."""
        while True:
            keys = tuple(self._controllers)
            pause = self._settings.history_flush_seconds / max(len(keys), 1)
            for key in keys:
                await asyncio.sleep(pause)
                await self._save(key)
            if not keys:
                await asyncio.sleep(pause)

    async def _save(self, key: Key) -> None:
        known = self._controllers.get(key)
        if known is None:
            return  # It was deleted while the others' memories were saved.
        try:
            await known[1].save()
        except (ClusterError, ForeignObjectError, LeaseLostError) as error:
            logger.warning("%s: its memory wasn't saved: %s", key, error)
        except Exception:
            # Anything else is a defect here, and no other object may suffer from it.
            logger.exception("%s: its memory wasn't saved", key)


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel them and wait until they are done."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
