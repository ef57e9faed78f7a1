"""Duet in the server process: one worker as its callers see it, put together from what all processes say.

Invariant: nothing here waits for a scheduler: its numbers are read from shared memory. A request counts as work from
the moment it is let in until its answer has left, wherever it is in between.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import Counter, deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

from duet_engine.authentication import Guard, ensure_local_token
from duet_engine.drain import Drain, Stamp
from duet_engine.knobs import changes
from duet_engine.perf.roofline import Roofline
from duet_engine.plugin import features
from duet_engine.plugin.board import Numbers, cards
from duet_engine.plugin.facts import FACT_NAMES, KNOBS_KEY, SchedulerFacts, facts_from
from duet_engine.plugin.health import inactive_reason, stuck_reason
from duet_engine.plugin.hooks import HookTable, Process
from duet_engine.plugin.profile import Capacity, replica_model, worker_profile
from duet_engine.plugin.settings import EngineSettings
from duet_engine.protocol import (
    Dispatch,
    DrainRequest,
    DrainStatus,
    Knobs,
    ProcessInfo,
    RefusalReason,
    Role,
    Work,
    WorkerInfo,
    WorkerProfile,
    WorkerState,
)

MAX_GATEWAYS = 64
ACCEPT_SECONDS = 0.01
"""A request is in its scheduler's numbers so long after it was let in: tokenizing and one turn of the loop."""
ROLES = tuple(Role)


class ServerSide:
    """One worker."""

    def __init__(self, settings: EngineSettings, board: Path, hooks: HookTable, *, sglang_version: str) -> None:
        self.settings = settings
        self.hooks = hooks
        self.sglang_version = sglang_version
        self.instance_id = uuid.uuid4().hex
        self.drain = Drain(worker=settings.worker)
        self.guard = Guard(
            trust_file=settings.trust_file,
            shared_token_file=settings.shared_token_file,
            local_token_file=settings.local_token_file,
        )
        self.knobs = Knobs(generation=0, itl_milliseconds=settings.itl_milliseconds)
        self.refusals: Counter[RefusalReason] = Counter()
        self.warming_up = False
        """While SGLang's own warm-up asks itself for a few tokens."""
        self.active_requests = 0
        self.sglang: Any = None
        """SGLang's global state, once its server has started."""
        self._board = board
        self._numbers: dict[int, Numbers] = {}
        self._sequence = 0
        self._accepted: dict[str, int] = {}
        self._arriving: deque[tuple[float, Dispatch]] = deque()
        self._replica: Roofline | None = None

    # --- SGLang ---

    def started(self, global_state: Any) -> None:  # noqa: ANN401
        """SGLang's server is about to listen."""
        self.sglang, self._server_args = global_state, global_state.tokenizer_manager.server_args
        if not self.settings.worker:
            self.drain.worker = f"{self._server_args.host}:{self._server_args.port}"
        if self.settings.local_token_file is not None:
            ensure_local_token(self.settings.local_token_file)

    @property
    def worker(self) -> str:
        return self.drain.worker

    @property
    def role(self) -> Role:
        """As the schedulers are now; what was asked for until they have said so."""
        schedulers = self.schedulers()
        return ROLES[int(schedulers[0].role)] if schedulers else self.settings.role

    def expected_processes(self) -> set[tuple[str, int]]:
        """Whom to hear from: every rank of this pod and the detokenizer."""
        ranks = self._server_args.tp_size * self._server_args.pp_size
        expected = {(Process.SCHEDULER.value, rank) for rank in range(ranks)}
        return expected | {(Process.DETOKENIZER.value, 0), (Process.SERVER.value, 0)}

    def schedulers(self) -> list[SchedulerFacts]:
        """What each rank wrote last."""
        if not self._numbers:
            for path in sorted(self._board.glob("scheduler-*.numbers")):
                rank = int(path.stem.rpartition("-")[2])
                self._numbers[rank] = Numbers(path, FACT_NAMES, create=False)
        return [facts_from(numbers.read()) for _, numbers in sorted(self._numbers.items())]

    # --- requests ---

    def let_in(self, dispatch: Dispatch | None) -> None:
        """A request goes to SGLang."""
        self.active_requests += 1
        if dispatch is not None:
            self._arriving.append((time.monotonic(), dispatch))
            self._settle(time.monotonic())

    def answered(self) -> None:
        """Its answer has left, or its client."""
        self.active_requests -= 1

    def refusal_reason(self) -> tuple[RefusalReason, str] | None:
        """Why no request is let in now; None where they are."""
        if not self.warming_up and not self.serving:
            return RefusalReason.NOT_READY, "the engine is starting"
        if self.terminating or self.drain.active(time.monotonic()):
            return RefusalReason.DRAINING, "the worker is draining"
        return None

    @property
    def serving(self) -> bool:
        """Whether SGLang has warmed up."""
        return self.sglang is not None and self.sglang.tokenizer_manager.server_status.value != "Starting"

    @property
    def terminating(self) -> bool:
        return self.sglang is not None and bool(self.sglang.tokenizer_manager.gracefully_exit)

    # --- drain ---

    def start_drain(self, wanted: DrainRequest) -> None:
        self.drain.request(
            lease_seconds=wanted.lease_seconds,
            requested_by=wanted.requested_by,
            reason=wanted.reason,
            now=time.monotonic(),
        )

    def work(self) -> Work:
        """Everything that would be lost if the process ended now."""
        schedulers = self.schedulers()
        facts = schedulers[0] if schedulers else SchedulerFacts()
        # A request may be in the tokenizer, or its answer on its way out: no scheduler knows of it.
        elsewhere = max(0, self.active_requests - int(facts.total_work))
        return Work(
            running=int(facts.running),
            queued=int(facts.queued) + elsewhere,
            deflected=int(facts.deflected),
            prefill_bootstrap=int(facts.prefill_bootstrap),
            prefill_inflight=int(facts.prefill_inflight),
            decode_prealloc=int(facts.decode_prealloc),
            decode_transfer=int(facts.decode_transfer),
        )

    def drain_status(self) -> DrainStatus:
        """Answer of `/duet/drain`."""
        return self.drain.status(self.work(), time.monotonic(), self.stamp())

    # --- what it says about itself ---

    def stamp(self) -> Stamp:
        self._sequence += 1
        return Stamp(instance_id=self.instance_id, sequence=self._sequence, written_at_seconds=time.time())

    def unready_reason(self) -> str | None:
        """None when the worker takes new work."""
        now = time.monotonic()
        if not self.serving:
            return "starting"
        if self.terminating:
            return "terminating"
        if self.drain.active(now):
            return f"draining, asked for by {self.drain.requested_by or 'nobody by name'}: {self.drain.reason}"
        if reason := self.inactive_reason():
            return f"Duet's plugin isn't active: {reason}"
        if not self.sglang.tokenizer_manager.is_ready():
            return "SGLang says that it isn't ready"
        return self.stuck_reason()

    def inactive_reason(self) -> str | None:
        return inactive_reason(self.processes(), self.expected_processes())

    def stuck_reason(self) -> str | None:
        return stuck_reason(self.schedulers(), now=time.monotonic())

    def processes(self) -> list[ProcessInfo]:
        """Every process with its hooks as they are, and how long ago a scheduler's loop came round."""
        now = time.monotonic()
        own = ProcessInfo(name=Process.SERVER.value, pid=os.getpid(), hooks=self.hooks.statuses())
        ages = {rank: now - facts.heartbeat_at for rank, facts in enumerate(self.schedulers())}
        others = [
            card.model_copy(update={"heartbeat_age_seconds": round(ages.get(card.rank, 0.0), 3)})
            if card.name == Process.SCHEDULER.value
            else card
            for card in cards(self._board)
        ]
        return [own, *others]

    def info(self) -> WorkerInfo:
        """`GET /duet/info`."""
        inactive = self.inactive_reason()
        role, facts = self.role, (self.schedulers() or [SchedulerFacts()])[0]
        return WorkerInfo(
            **self.stamp(),
            worker=self.worker,
            role=role,
            revision=self.settings.revision,
            engine_name="sglang",
            engine_version=self.sglang_version,
            plugin_version=version("duet-serve"),
            plugin_active=inactive is None,
            inactive_reason=inactive,
            processes=tuple(self.processes()),
            bootstrap_port=self._server_args.disaggregation_bootstrap_port if role is Role.PREFILL else None,
            gpu_partition=self.settings.gpu_partition,
            features=features.matrix(role),
            profile=self._profile(role, facts),
        )

    def _profile(self, role: Role, facts: SchedulerFacts) -> WorkerProfile:
        arguments = self._server_args
        if self._replica is None:
            ranks = arguments.tp_size * arguments.pp_size
            self._replica = replica_model(self.settings, model_path=arguments.model_path, ranks=ranks)
        capacity = Capacity(
            kv_tokens=int(facts.kv_capacity_tokens),
            max_running_requests=int(facts.max_running_requests),
            chunked_prefill_tokens=int(facts.chunked_prefill_tokens),
        )
        return worker_profile(self.settings, self._replica, role=role, capacity=capacity)

    def state(self) -> WorkerState:
        """`GET /duet/state`."""
        now = time.monotonic()
        facts = (self.schedulers() or [SchedulerFacts()])[0]
        draining = self.terminating or self.drain.active(now)
        ready = self.serving and not draining
        return WorkerState(
            **self.stamp(),
            worker=self.worker,
            role=ROLES[int(facts.role)],
            revision=self.settings.revision,
            ready=ready,
            draining=draining,
            deflection_active=ready and bool(facts.deflection_active),
            knobs_generation=self.knobs.generation,
            work=self.work(),
            queued_prefill_tokens=int(facts.queued_prefill_tokens),
            queued_deflected_tokens=int(facts.queued_deflected_tokens),
            decode_requests=int(facts.decode_requests),
            decode_context_tokens=int(facts.decode_context_tokens),
            kv_used_tokens=int(facts.kv_used_tokens),
            kv_reserved_tokens=int(facts.kv_reserved_tokens),
            kv_capacity_tokens=int(facts.kv_capacity_tokens),
            step=facts.kind,
            step_started_at_seconds=time.time() - (now - facts.step_started_at) if facts.step_started_at else 0.0,
            step_predicted_seconds=facts.step_predicted_seconds,
            headroom_tokens_per_second=facts.headroom_tokens_per_second if ready else 0.0,
            accepted=self._accepted_by(now),
            prefill_tokens_total=int(facts.prefill_tokens_total),
            deflected_tokens_total=int(facts.deflected_tokens_total),
            deflected_requests_total=int(facts.deflected_requests_total),
            output_tokens_total=int(facts.output_tokens_total),
            refusals_total=sum(self.refusals.values()),
            busy_seconds_total=facts.busy_seconds_total,
        )

    def shape(self) -> tuple[float, ...]:
        """What readers of the state want to know of at once when it changes."""
        facts = (self.schedulers() or [SchedulerFacts()])[0]
        draining = float(self.terminating or self.drain.active(time.monotonic()))
        return facts.step_kind, facts.decode_requests, facts.total_work, draining, float(self.knobs.generation)

    def _accepted_by(self, now: float) -> dict[str, int]:
        """Gateways' last dispatches that the numbers include."""
        self._settle(now)
        return dict(self._accepted)

    def _settle(self, now: float) -> None:
        while self._arriving and now - self._arriving[0][0] >= ACCEPT_SECONDS:
            _, dispatch = self._arriving.popleft()
            last = self._accepted.pop(dispatch.gateway, 0)
            self._accepted[dispatch.gateway] = max(last, dispatch.sequence)
            if len(self._accepted) > MAX_GATEWAYS:
                del self._accepted[next(iter(self._accepted))]

    # --- knobs ---

    async def apply_knobs(self, knobs: Knobs) -> bool:
        """Put newer settings in force on every rank, between the same two requests; False when they change nothing."""
        if not changes(knobs, self.knobs):
            return False
        await self.tell_schedulers(knobs)
        self.knobs = knobs
        return True

    async def tell_schedulers(self, knobs: Knobs) -> None:
        """By SGLang's own way of changing settings, which keeps the ranks in step."""
        from sglang.srt.managers.io_struct import SetInternalStateReq

        request = SetInternalStateReq(server_args={KNOBS_KEY: knobs.write().decode()})
        updated = await asyncio.wait_for(self.sglang.tokenizer_manager.set_internal_state(request), 10.0)
        if not all(updated):
            raise RuntimeError("a scheduler refused the settings")
