"""The running engine: a scheduler driven by the loop's clock, and everything that hears about its progress.

Invariant: a step ends when the model says so, measured from the end of the step before; a late timer shortens the
wait for the next one, so that rates stay right on a busy machine. All calls come from one event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_engine.perf.linear import LinearStepModel
from duet_engine.protocol import Dispatch, DrainRequest, Knobs, RefusalReason, Role, StepKind, WorkerState
from duet_engine.simulated_engine.decode_role import DecodeScheduler
from duet_engine.simulated_engine.drain import Drain, Stamp
from duet_engine.simulated_engine.measurements import Measurements
from duet_engine.simulated_engine.prefill_role import PrefillScheduler
from duet_engine.simulated_engine.request import Failure, Finish, Refused, Request
from duet_engine.simulated_engine.scheduler import Limits, Scheduler, UnifiedScheduler
from duet_engine.simulated_engine.steps import Step

if TYPE_CHECKING:
    from duet_engine.protocol import WorkerProfile
    from duet_engine.simulated_engine.settings import Settings

MAX_CATCH_UP_SECONDS = 0.1
"""A loop that was held up longer than this doesn't make good for it by a burst of steps."""
TIMER_RESOLUTION_SECONDS = 0.001
MAX_GATEWAYS = 64


@dataclass(slots=True)
class Faults:
    """What tests ask for; see `/simulate/faults`."""

    slow_factor: float = 1.0
    hang_until: float = 0.0
    fail_next_requests: int = 0


class Engine:
    """One worker."""

    def __init__(self, settings: Settings, profile: WorkerProfile) -> None:
        self.settings = settings
        self.profile = profile
        self.instance_id = uuid.uuid4().hex
        self.knobs = Knobs(generation=0, itl_milliseconds=settings.itl_milliseconds)
        self.scheduler = _scheduler(settings, profile, self.knobs)
        self.drain = Drain(worker=settings.worker)
        self.faults = Faults()
        self.measurements = Measurements()
        self.ready = False
        self._progressed_at = self.now()
        self.claim: Callable[[Request], None] = _nobody
        """Ask the prefill side for a request's KV."""
        self.delivered: Callable[[Request], None] = _nobody
        """Tell the decode side that its KV has left."""
        self.peer_gone: Callable[[Request, str], None] = _nobody_why
        """Tell the other side of a room that this side has given up."""
        self.changed: Callable[[], None] = _nothing
        """Something happened that a gateway wants to know before the next line of the state stream is due."""
        self._loop = asyncio.get_running_loop()
        self._noise = random.Random(settings.seed)
        self._accepted: dict[str, int] = {}
        self._step: Step | None = None
        self._step_seconds = 0.0
        self._step_started_at = 0.0
        self._step_ends_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._epoch_offset_seconds = time.time() - self.now()
        self._sequence = 0
        self._shape: tuple[StepKind, int, int] = (StepKind.IDLE, 0, 0)
        self._throughput = 0.0
        self._throughput_sample = (self.now(), 0)

    @staticmethod
    def now() -> float:
        return time.monotonic()

    # --- requests ---

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            Refused: when this worker can't take it now; nothing has been done for it.
        """
        now = self.now()
        if not self.ready:
            raise Refused(RefusalReason.NOT_READY, "the engine is starting")
        if self.drain.active(now):
            raise Refused(RefusalReason.DRAINING, "the worker is draining")
        if self.scheduler.work().total == 0:
            self._progressed_at = now
        self.scheduler.submit(request, now)
        self.wake()

    def note_dispatch(self, dispatch: Dispatch) -> None:
        """Remember which of a gateway's dispatches have arrived here."""
        last = self._accepted.pop(dispatch.gateway, 0)
        self._accepted[dispatch.gateway] = max(last, dispatch.sequence)
        if len(self._accepted) > MAX_GATEWAYS:
            del self._accepted[next(iter(self._accepted))]

    def count_refusal(self, reason: RefusalReason) -> None:
        self.measurements.refusals[reason] += 1

    def claimed(self, request: Request) -> None:
        """The decode side of this prefill request holds KV for it."""
        if isinstance(self.scheduler, PrefillScheduler):
            self.scheduler.claimed(request, self.now())
            self.wake()

    def arrived(self, request: Request) -> None:
        """The KV of this decode request is here."""
        if isinstance(self.scheduler, DecodeScheduler):
            self.scheduler.arrived(request, self.now())
            self.wake()

    def abort(self, *, rid_prefix: str) -> int:
        """End every request whose id starts so, as SGLang does; how many there were."""
        aborted = [request for request in self.scheduler.requests() if request.rid.startswith(rid_prefix)]
        for request in aborted:
            self._abort(request)
            request.finish = Finish.ABORT
            if request.listener is not None:
                request.listener.finished(request)
        self.wake()
        return len(aborted)

    def disconnected(self, request: Request) -> None:
        """The client is gone, so nobody wants the answer."""
        if not request.done:
            self._abort(request)
            self.wake()

    def fail(self, request: Request, failure: Failure) -> None:
        """End a request with an error."""
        self.scheduler.fail(request, failure)
        self.wake()

    def fail_all(self, message: str) -> int:
        """End every request with an error; how many there were."""
        requests = list(self.scheduler.requests())
        for request in requests:
            self.scheduler.fail(request, Failure(message=message, status=503, kind="SERVICE_UNAVAILABLE"))
        self._tell()
        return len(requests)

    def _abort(self, request: Request) -> None:
        self.scheduler.abort(request)
        self.measurements.aborted_requests += 1
        self.peer_gone(request, f"request {request.rid} was aborted")

    # --- time ---

    def wake(self) -> None:
        """Something changed from outside; an idle engine starts a step at once."""
        if self._step is None:
            self._advance(self.now())
        else:
            self._tell()

    def reschedule(self) -> None:
        """The moment at which the present step ends has changed."""
        self._advance(self.now())

    def _on_timer(self, due_at: float) -> None:
        self._timer = None
        self._advance(max(self.now(), due_at))

    def _advance(self, now: float) -> None:
        self.scheduler.poll(now)
        start_at = now
        ended_at = max(self._step_ends_at, self.faults.hang_until)
        if self._step is not None and now >= ended_at:
            step, self._step = self._step, None
            self.scheduler.finish_step(step, ended_at, self._step_seconds)
            self._progressed_at = now
            if now - ended_at < MAX_CATCH_UP_SECONDS:
                start_at = ended_at
        self._tell()
        if self._step is None and now >= self.faults.hang_until:
            self._start_step(start_at)
        self._set_timer()
        self._notice_change()

    def _start_step(self, start_at: float) -> None:
        step = self.scheduler.start_step(start_at)
        if step is not None:
            noise = max(0.2, self._noise.gauss(1.0, self.settings.step_noise)) if self.settings.step_noise else 1.0
            self._step = step
            self._step_seconds = step.predicted_seconds * noise * self.faults.slow_factor
            self._step_started_at = start_at
            self._step_ends_at = start_at + self._step_seconds
        self._tell()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moments = [moment for moment in (self.scheduler.next_event_at(), self._next_step_at()) if moment is not None]
        if moments:
            due_at = min(moments)
            self._timer = self._loop.call_later(max(0.0, due_at - self.now()), self._on_timer, due_at)

    def _next_step_at(self) -> float | None:
        """When the present step ends or, after a hang, the next one may begin."""
        if self._step is not None:
            return max(self._step_ends_at, self.faults.hang_until)
        return self.faults.hang_until if self.faults.hang_until > self.now() else None

    def _tell(self) -> None:
        """Pass on everything that happened."""
        progress = self.scheduler.take_progress()
        if not progress:
            return
        for request in progress.tokens:
            self.measurements.observe_token(request)
            if request.listener is not None:
                request.listener.token(request)
        for request in progress.delivered:
            self.delivered(request)
        for request in progress.finished:
            self.measurements.observe_finished(request)
            if request.listener is not None:
                request.listener.finished(request)
        for request, failure in progress.failed:
            self.measurements.observe_failed(failure)
            self.peer_gone(request, failure.message)
            if request.listener is not None:
                request.listener.failed(request, failure)
        for request in progress.claims:
            self.claim(request)

    # --- what the worker says about itself ---

    def _notice_change(self) -> None:
        shape = (
            StepKind.IDLE if self._step is None else self._step.kind,
            len(self.scheduler.running),
            self.scheduler.work().total,
        )
        if shape != self._shape:
            self._shape = shape
            self.drain.observe(self.scheduler.work(), self.now())
            self.changed()

    def start_drain(self, wanted: DrainRequest) -> None:
        """Refuse new work for as long as the lease lasts."""
        self.drain.request(
            lease_seconds=wanted.lease_seconds,
            requested_by=wanted.requested_by,
            reason=wanted.reason,
            now=self.now(),
        )
        self.changed()

    def cancel_drain(self) -> None:
        """Serve again, unless the process is ending."""
        self.drain.cancel()
        self.changed()

    def terminate(self) -> None:
        """Drain for good: the process is ending."""
        self.drain.terminate()
        self.changed()

    def generation_tokens_per_second(self) -> float:
        """Output tokens per second since this was last asked, over at least a second."""
        now, tokens = self.now(), self.scheduler.totals.output_tokens
        sampled_at, sampled_tokens = self._throughput_sample
        if now - sampled_at >= 1.0:
            self._throughput = (tokens - sampled_tokens) / (now - sampled_at)
            self._throughput_sample = (now, tokens)
        return self._throughput

    def live(self) -> str | None:
        """None while steps get done; else why this worker looks stuck."""
        waited = self.now() - self._progressed_at
        expected = 0.0 if self._step is None else self._step_seconds
        stuck = self._step is not None or (self.faults.hang_until > self.now() and self.scheduler.work().total > 0)
        if stuck and waited > self.settings.watchdog_seconds + expected:
            return f"there is work and no step has ended for {waited:.0f} s"
        return None

    def stamp(self) -> Stamp:
        """Which process wrote a document, when, and the how-manieth it is."""
        self._sequence += 1
        return Stamp(
            instance_id=self.instance_id,
            sequence=self._sequence,
            written_at_seconds=self.now() + self._epoch_offset_seconds,
        )

    def state(self) -> WorkerState:
        """`GET /duet/state`."""
        scheduler, totals, now = self.scheduler, self.scheduler.totals, self.now()
        draining = self.drain.active(now)
        deflecting = self.ready and not draining and isinstance(scheduler, DecodeScheduler)
        deflection_active = deflecting and self.knobs.deflection_enabled
        return WorkerState(
            **self.stamp(),
            worker=self.settings.worker,
            role=self.settings.role,
            revision=self.settings.revision,
            ready=self.ready and not draining,
            draining=draining,
            deflection_active=deflection_active,
            knobs_generation=self.knobs.generation,
            work=scheduler.work(),
            queued_prefill_tokens=scheduler.queued_prefill_tokens(),
            queued_deflected_tokens=scheduler.queued_deflected_tokens(),
            decode_requests=len(scheduler.running),
            decode_context_tokens=scheduler.context_tokens,
            kv_used_tokens=scheduler.kv.used_tokens,
            kv_reserved_tokens=scheduler.kv.reserved_tokens,
            kv_capacity_tokens=scheduler.kv.capacity_tokens,
            step=StepKind.IDLE if self._step is None else self._step.kind,
            step_started_at_seconds=0.0 if self._step is None else self._step_started_at + self._epoch_offset_seconds,
            step_predicted_seconds=0.0 if self._step is None else self._step.predicted_seconds,
            headroom_tokens_per_second=scheduler.headroom_tokens_per_second() if deflection_active else 0.0,
            accepted=dict(self._accepted),
            prefill_tokens_total=totals.prefill_tokens,
            deflected_tokens_total=totals.deflected_tokens,
            deflected_requests_total=totals.deflected_requests,
            output_tokens_total=totals.output_tokens,
            refusals_total=sum(self.measurements.refusals.values()),
            busy_seconds_total=totals.busy_seconds,
        )

    def apply_knobs(self, knobs: Knobs) -> bool:
        """Take over newer settings; False when they are older than those in force or equal to them."""
        if knobs.generation < self.knobs.generation or knobs == self.knobs:
            return False
        self.knobs = knobs
        self.scheduler.apply_knobs(knobs)
        self.changed()
        return True


def _scheduler(settings: Settings, profile: WorkerProfile, knobs: Knobs) -> Scheduler:
    model = LinearStepModel.from_coefficients(profile.steps)
    limits = Limits(
        kv_capacity_tokens=profile.kv_capacity_tokens,
        max_running_requests=profile.max_running_requests,
        chunked_prefill_tokens=profile.chunked_prefill_tokens,
        reserved_decode_tokens=settings.reserved_decode_tokens,
        max_deflected_requests=settings.max_deflected_requests,
        deflected_wait_seconds=settings.deflected_wait_seconds,
    )
    if settings.role is Role.PREFILL:
        return PrefillScheduler(model=model, limits=limits)
    if settings.role is Role.DECODE:
        return DecodeScheduler(model=model, limits=limits, knobs=knobs)
    return UnifiedScheduler(model=model, limits=limits)


def _nobody(request: Request) -> None:
    """No peer is wired in."""


def _nobody_why(request: Request, message: str) -> None:
    """No peer is wired in."""


def _nothing() -> None:
    """Nobody listens."""
