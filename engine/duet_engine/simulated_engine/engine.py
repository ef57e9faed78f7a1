"""One worker: its scheduler, drain and knobs, who hears of its requests' progress, and what it says about itself.

Invariant: work is taken only while ready and not draining, and every request that ends is told to its listener and to
the other side of its room. All calls come from one event loop.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from duet_engine.drain import Drain, Stamp
from duet_engine.knobs import changes
from duet_engine.perf.replica import replica_from_document
from duet_engine.protocol import Dispatch, DrainRequest, Knobs, RefusalReason, Role, StepKind, WorkerState
from duet_engine.simulated_engine.decode_role import DecodeScheduler
from duet_engine.simulated_engine.measurements import Measurements
from duet_engine.simulated_engine.prefill_role import PrefillScheduler
from duet_engine.simulated_engine.request import Failure, Finish, Refused, Request
from duet_engine.simulated_engine.scheduler import Limits, Scheduler, UnifiedScheduler
from duet_engine.simulated_engine.stepper import Stepper, now

if TYPE_CHECKING:
    from duet_engine.protocol import WorkerProfile
    from duet_engine.simulated_engine.settings import Settings

MAX_GATEWAYS = 64


class Engine:
    """One worker."""

    def __init__(self, settings: Settings, profile: WorkerProfile) -> None:
        self.settings = settings
        self.profile = profile
        self.instance_id = uuid.uuid4().hex
        self.knobs = Knobs(generation=0, itl_milliseconds=settings.itl_milliseconds)
        self.scheduler = _scheduler(settings, profile, self.knobs)
        self.drain = Drain(worker=settings.worker)
        self.stepper = Stepper(
            self.scheduler,
            step_noise=settings.step_noise,
            seed=settings.seed,
            tell=self._tell,
            changed=self._shape_changed,
        )
        self.measurements = Measurements()
        self.ready = False
        self.claim: Callable[[Request], None] = _nobody
        """Ask the prefill side for a request's KV."""
        self.delivered: Callable[[Request], None] = _nobody
        """Tell the decode side that its KV has left."""
        self.peer_gone: Callable[[Request, str], None] = _nobody_why
        """Tell the other side of a room that this side has given up."""
        self.changed: Callable[[], None] = _nothing
        """Something happened that a gateway wants to know before the next line of the state stream is due."""
        self._accepted: dict[str, int] = {}
        self._epoch_offset_seconds = time.time() - self.now()
        self._sequence = 0
        self._throughput = 0.0
        self._throughput_sample = (self.now(), 0)

    @staticmethod
    def now() -> float:
        return now()

    # --- requests ---

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            Refused: when this worker can't take it now; nothing has been done for it.
        """
        moment = self.now()
        if not self.ready:
            raise Refused(RefusalReason.NOT_READY, "the engine is starting")
        if self.drain.active(moment):
            raise Refused(RefusalReason.DRAINING, "the worker is draining")
        self.scheduler.submit(request, moment)
        self.stepper.wake()

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
            self.stepper.wake()

    def arrived(self, request: Request) -> None:
        """The KV of this decode request is here."""
        if isinstance(self.scheduler, DecodeScheduler):
            self.scheduler.arrived(request, self.now())
            self.stepper.wake()

    def abort(self, *, rid_prefix: str) -> int:
        """End every request whose id starts so, as SGLang does; how many there were."""
        aborted = [request for request in self.scheduler.requests() if request.rid.startswith(rid_prefix)]
        for request in aborted:
            self._abort(request)
            request.finish = Finish.ABORT
            if request.listener is not None:
                request.listener.finished(request)
        self.stepper.wake()
        return len(aborted)

    def disconnected(self, request: Request) -> None:
        """The client is gone, so nobody wants the answer."""
        if not request.done:
            self._abort(request)
            self.stepper.wake()

    def fail(self, request: Request, failure: Failure) -> None:
        """End a request with an error."""
        self.scheduler.fail(request, failure)
        self.stepper.wake()

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

    # --- progress ---

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

    def _shape_changed(self) -> None:
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
        moment, tokens = self.now(), self.scheduler.totals.output_tokens
        sampled_at, sampled_tokens = self._throughput_sample
        if moment - sampled_at >= 1.0:
            self._throughput = (tokens - sampled_tokens) / (moment - sampled_at)
            self._throughput_sample = (moment, tokens)
        return self._throughput

    def live(self) -> str | None:
        """None while steps get done; else why this worker looks stuck."""
        stuck_seconds = self.stepper.stuck_seconds()
        if stuck_seconds > self.settings.watchdog_seconds:
            return f"there is work and no step has ended for {stuck_seconds:.0f} s"
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
        scheduler, totals = self.scheduler, self.scheduler.totals
        step = self.stepper.step
        draining = self.drain.active(self.now())
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
            step=StepKind.IDLE if step is None else step.kind,
            step_started_at_seconds=0.0 if step is None else self.stepper.started_at + self._epoch_offset_seconds,
            step_predicted_seconds=0.0 if step is None else step.predicted_seconds,
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
        if not changes(knobs, self.knobs):
            return False
        self.knobs = knobs
        self.scheduler.apply_knobs(knobs)
        self.changed()
        return True


def _scheduler(settings: Settings, profile: WorkerProfile, knobs: Knobs) -> Scheduler:
    model = replica_from_document(profile.replica)
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
