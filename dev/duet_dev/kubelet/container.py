"""One container's life: planned, run, run again with back-off, ended.

Invariant: when `run` returns, no process of the container is left and it will not run again.
"""

import asyncio
import contextlib

from duet_dev.kubeapi import UNAVAILABLE, JsonObject, timestamp
from duet_dev.kubelet import reaper
from duet_dev.kubelet.backoff import Backoff
from duet_dev.kubelet.problems import CannotStart, StartError
from duet_dev.kubelet.processes import CONTAINER_MARKER
from duet_dev.kubelet.run import Run, Surroundings
from duet_dev.kubelet.sandbox import Launch
from duet_dev.kubelet.status import ContainerView, terminated, waiting

START_ERROR_CODE = 128
LOST_CODE = 255


class Container:
    def __init__(self, spec: JsonObject, pod: Surroundings, *, restart_policy: str, sidecar: bool = False) -> None:
        self.spec, self.sidecar = spec, sidecar
        self.name: str = spec["name"]
        self.current: Run | None = None
        self.state: JsonObject = waiting("ContainerCreating")
        self.last_state: JsonObject = {}
        self.restarts = 0
        self.devices: dict[str, str] = {}  # the variables that name its devices
        self._pod, self._restart_policy = pod, restart_policy
        self.has_started, self._ended = asyncio.Event(), asyncio.Event()

    def take_over(self, previous: JsonObject) -> None:
        """A kubelet before this one ran the container; its processes went with it, as at a node's reboot."""
        self.restarts = previous["restartCount"]
        if running := previous["state"].get("running"):
            self.restarts += 1
            self.last_state = terminated(LOST_CODE, "Unknown", started=running["startedAt"], finished=timestamp())
        else:
            ended = "terminated" in previous["state"]
            self.last_state = previous["state"] if ended else previous["lastState"]

    # -- what the pod sees and asks for

    @property
    def ending(self) -> bool:
        return self._ended.is_set()

    def end(self, grace_seconds: float) -> None:
        """Stop for good; asked again, the earlier deadline holds."""
        self._ended.set()
        if self.current:
            self.current.stop(grace_seconds, for_good=True)

    def wait_for(self, reason: str, message: str = "") -> None:
        self._show(waiting(reason, message))

    @property
    def ready(self) -> bool:
        return self.current is not None and self.current.ready

    def view(self) -> ContainerView:
        return ContainerView(
            self.name, self.state, self.last_state, self.ready, self.has_started.is_set(), self.sidecar
        )

    def status(self) -> JsonObject:
        process = self.current.process.pid if self.current else None
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": self.spec["image"],
            "containerID": f"process://{process}" if process else "",
            "state": self.state,
            "lastState": self.last_state,
            "restartCount": self.restarts,
            "started": self.has_started.is_set(),
            "ready": self.ready,
        }

    # -- its life

    async def run(self) -> None:
        backoff = Backoff(*self._pod.backoff)
        while (launch := await self._plan()) is not None:
            backoff.started()
            code = await self._run_once(launch)
            again = self._restart_policy == "Always" or (self._restart_policy == "OnFailure" and code != 0)
            if self.ending or not again:
                return
            seconds = backoff.next_seconds()
            message = f"back-off {seconds:g}s restarting failed container={self.name}"
            self.last_state = self.state
            self._pod.report("Warning", "BackOff", message)
            self.wait_for("CrashLoopBackOff", message)
            if await self._ends_within(seconds):
                return
            self.restarts += 1

    async def _plan(self) -> Launch | None:
        """How to start it, once everything it needs is there; None when its end comes before."""
        backoff = Backoff(*self._pod.backoff)
        while not self.ending:
            try:
                launch = await self._pod.sandbox.plan(self.spec, devices=self.devices)
            except CannotStart as problem:
                await self._wait_for_what_is_missing(problem, backoff)
                continue
            except UNAVAILABLE as error:
                self._pod.report("Warning", "Failed", f"Error: {error}")
                await self._ends_within(1)
                continue
            if not await self._ends_within(launch.delay_seconds):
                return launch
        return None

    async def _wait_for_what_is_missing(self, problem: CannotStart, backoff: Backoff) -> None:
        self.wait_for(problem.reason, problem.message)
        self._pod.report("Warning", "Failed", problem.message)
        seconds = backoff.next_seconds()
        if problem.reason == "ErrImagePull" and not await self._ends_within(min(1, seconds)):
            image = self.spec["image"]
            self.wait_for("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {problem.message}')
        await self._ends_within(seconds)

    async def _ends_within(self, seconds: float) -> bool:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), seconds)
        return self.ending

    async def _run_once(self, launch: Launch) -> int:
        started = timestamp()
        try:
            with self._pod.log_file(self.name, self.restarts).open("wb") as output:
                process = await self._pod.sandbox.start(launch, output=output)
        except (StartError, OSError) as error:
            return self._over(START_ERROR_CODE, "StartError", started, str(error))
        self.current = Run(self.spec, process=process, launch=launch, pod=self._pod, started=self.has_started)
        if self.ending:  # asked to end while the process was being started
            self.current.stop(0, for_good=True)
        self._pod.report("Normal", "Started", f"Started container {self.name}")
        self._show({"running": {"startedAt": started}})
        try:
            code = await self.current.finish()
        finally:
            self.current = None
            self.has_started.clear()
        marker = f"{CONTAINER_MARKER}={self._pod.sandbox.uid}/{self.name}"
        await asyncio.to_thread(reaper.end_all, marker, process.pid)
        return self._over(code, "Error" if code else "Completed", started)

    def _over(self, code: int, reason: str, started: str, message: str = "") -> int:
        self._show(terminated(code, reason, started=started, finished=timestamp(), message=message))
        return code

    def _show(self, state: JsonObject) -> None:
        self.state = state
        self._pod.changed()
