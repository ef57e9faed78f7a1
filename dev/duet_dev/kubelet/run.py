"""One run of a container's process: hooks, probes, and a stop within the grace period."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from duet_dev.kubeapi import JsonObject
from duet_dev.kubelet import actions
from duet_dev.kubelet.actions import ActionFailed
from duet_dev.kubelet.probes import verdicts
from duet_dev.kubelet.processes import Process
from duet_dev.kubelet.sandbox import Launch, Sandbox

LEAST_SECONDS_AFTER_SIGTERM = 2


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container needs from its pod."""

    sandbox: Sandbox
    log_file: Callable[[str, int], Path]  # of a container's run with this number
    grace_seconds: float
    backoff: tuple[float, float]
    changed: Callable[[], None]
    report: Callable[[str, str, str], None]  # an event's type, reason and message


class Run:
    """Until `finish` returns the process may live; afterwards neither it nor its group does."""

    def __init__(
        self,
        spec: JsonObject,
        *,
        process: Process,
        launch: Launch,
        pod: Surroundings,
        started: asyncio.Event,
    ) -> None:
        self.process, self.launch = process, launch
        self.ready = False
        self._spec, self._pod, self._started = spec, pod, started
        self._ordered = asyncio.Event()
        self._for_good = False
        self._grace_seconds = self._deadline = float("inf")
        self._timer: asyncio.Timeout | None = None

    def stop(self, grace_seconds: float, *, for_good: bool) -> None:
        """Order the stop; ordered again, the earlier deadline holds."""
        self._for_good = self._for_good or for_good
        self._grace_seconds = min(self._grace_seconds, grace_seconds)
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + grace_seconds)
        self._ordered.set()
        if self._timer is not None:
            self._timer.reschedule(self._deadline)

    async def finish(self) -> int:
        """Attend to the process until it has ended; its exit code."""
        attendant = asyncio.create_task(self._attend())
        exited = asyncio.ensure_future(self.process.wait())
        ordered = asyncio.ensure_future(self._ordered.wait())
        try:
            await asyncio.wait({exited, ordered}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                await self._stop()
            return await exited
        finally:
            self.process.kill()
            for task in (attendant, exited, ordered):
                task.cancel()

    async def _stop(self) -> None:
        """preStop, SIGTERM and the wait for the exit share the grace; SIGKILL ends what is left."""
        self._pod.report("Normal", "Killing", f"Stopping container {self._spec['name']}")
        if self._grace_seconds > 0:
            await self._until_deadline(self._pre_stop())
        if self._grace_seconds > 0:
            self.process.terminate()
            least = min(self._grace_seconds, LEAST_SECONDS_AFTER_SIGTERM)
            await self._until_deadline(self.process.wait(), least_seconds=least)
        self.process.kill()

    async def _until_deadline(self, work: Awaitable[object], *, least_seconds: float = 0) -> None:
        earliest = asyncio.get_running_loop().time() + least_seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(max(self._deadline, earliest)) as self._timer:
                await work
        self._timer = None

    async def _pre_stop(self) -> None:
        if hook := self._spec.get("lifecycle", {}).get("preStop"):
            try:
                await self._perform(hook, self._grace_seconds)
            except ActionFailed as failure:
                self._pod.report("Warning", "FailedPreStopHook", f"preStop hook failed: {failure}")

    async def execute(self, command: Sequence[str], timeout_seconds: float) -> int:
        return await self._pod.sandbox.execute(self.process, self.launch, command, seconds=timeout_seconds)

    def entering(self, command: Sequence[str], *, terminal: bool) -> list[str]:
        return self._pod.sandbox.entering(self.process, self.launch, command, terminal=terminal)

    async def _perform(self, action: JsonObject, timeout_seconds: float) -> None:
        await actions.perform(
            action,
            container=self._spec,
            address=self._pod.sandbox.address,
            execute=self.execute,
            timeout_seconds=timeout_seconds,
        )

    # -- probes

    async def _attend(self) -> None:
        """postStart, then the startup probe, then readiness and liveness until the container ends."""
        if hook := self._spec.get("lifecycle", {}).get("postStart"):
            try:
                await self._perform(hook, self._pod.grace_seconds)
            except ActionFailed as failure:
                self._pod.report("Warning", "FailedPostStartHook", f"postStart hook failed: {failure}")
                self.stop(self._pod.grace_seconds, for_good=False)
                return
        if "startupProbe" in self._spec and not await self._started_up():
            return
        self._started.set()
        self.ready = "readinessProbe" not in self._spec
        self._pod.changed()
        async with asyncio.TaskGroup() as group:
            if "readinessProbe" in self._spec:
                group.create_task(self._watch_readiness())
            if "livenessProbe" in self._spec:
                group.create_task(self._watch_liveness())

    async def _started_up(self) -> bool:
        probe = self._spec["startupProbe"]
        async for verdict in verdicts(probe, self._check(probe)):
            if verdict.success:
                return True
            self._unhealthy("Startup", verdict.message, probe)
            return False
        return False

    async def _watch_readiness(self) -> None:
        probe = self._spec["readinessProbe"]
        async for verdict in verdicts(probe, self._check(probe)):
            if verdict.success != self.ready:
                self.ready = verdict.success
                self._pod.changed()
            if not verdict.success:
                self._pod.report("Warning", "Unhealthy", f"Readiness probe failed: {verdict.message}")

    async def _watch_liveness(self) -> None:
        probe = self._spec["livenessProbe"]
        async for verdict in verdicts(probe, self._check(probe)):
            if self._for_good:
                break
            if not verdict.success:
                self._unhealthy("Liveness", verdict.message, probe)
                break

    def _unhealthy(self, kind: str, message: str, probe: JsonObject) -> None:
        self._pod.report("Warning", "Unhealthy", f"{kind} probe failed: {message}")
        grace = probe.get("terminationGracePeriodSeconds", self._pod.grace_seconds)
        self.stop(grace, for_good=False)

    def _check(self, probe: JsonObject) -> Callable[[float], Awaitable[None]]:
        return lambda timeout_seconds: self._perform(probe, timeout_seconds)
