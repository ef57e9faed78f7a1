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
from pathlib import Path
from typing import Any

from duet_engine.authentication import Guard, ensure_local_token
from duet_engine.drain import Drain, Stamp
from duet_engine.knobs import changes
from duet_engine.perf.roofline import Roofline
from duet_engine.plugin.board import Numbers, cards
from duet_engine.plugin.documents import worker_state
from duet_engine.plugin.facts import FACT_NAMES, KNOBS_KEY, SchedulerFacts, facts_from
from duet_engine.plugin.health import inactive_reason, stuck_reason
from duet_engine.plugin.hooks import HookTable, Process
from duet_engine.plugin.profile import Capacity, replica_model, worker_profile
from duet_engine.plugin.settings import EngineSettings
from duet_engine.plugin.warm_up import WarmUp
from duet_engine.protocol import (
    Dispatch,
    DrainRequest,
    DrainStatus,
    Knobs,
    ProcessInfo,
    RefusalReason,
    Role,
    Work,
    WorkerProfile,
    WorkerState,
)

MAX_GATEWAYS = 64
ACCEPT_SECONDS = 0.01
"""A request is in its scheduler's numbers so long after it was let in: tokenizing and one turn of the loop."""
LOOK_SECONDS = 1.0
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
        self.warm_up = WarmUp()
        self.closing = False
        """Whether the HTTP server is about to end: open streams end then."""
        self.failed_switch: str | None = None
        """Why a change of role has left this worker useless."""
        self.active_requests = 0
        self.sglang: Any = None
        """SGLang's global state, once its server has started."""
        self.server_args: Any = None
        self._board = board
        self._numbers: dict[int, Numbers] = {}
        self._sequence = 0
        self._accepted: dict[str, int] = {}
        self._arriving: deque[tuple[float, Dispatch]] = deque()
        self._replica: Roofline | None = None
        self._looked_at, self._active = -LOOK_SECONDS, False

    # --- SGLang ---

    def started(self, global_state: Any) -> None:  # noqa: ANN401
        """SGLang's server is about to listen."""
        self.sglang, self.server_args = global_state, global_state.tokenizer_manager.server_args
        if not self.settings.worker:
            self.drain.worker = f"{self.server_args.host}:{self.server_args.port}"
        if self.settings.local_token_file is not None:
            ensure_local_token(self.settings.local_token_file)

    @property
    def _ranks(self) -> int:
        return 1 if self.server_args is None else int(self.server_args.tp_size * self.server_args.pp_size)

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
        expected = {(Process.SCHEDULER.value, rank) for rank in range(self._ranks)}
        return expected | {(Process.DETOKENIZER.value, 0), (Process.SERVER.value, 0)}

    def schedulers(self) -> list[SchedulerFacts]:
        """What each rank wrote last."""
        for path in self._board.glob("scheduler-*.numbers") if len(self._numbers) < self._ranks else ():
            rank = int(path.stem.rpartition("-")[2])
            if rank not in self._numbers:
                self._numbers[rank] = Numbers(path, FACT_NAMES, create=False)
        return [facts_from(numbers.read()) for _, numbers in sorted(self._numbers.items())]

    @property
    def facts(self) -> SchedulerFacts:
        """Of rank 0, which speaks for the worker; zeros until it has written."""
        schedulers = self.schedulers()
        return schedulers[0] if schedulers else SchedulerFacts()

    # --- requests ---

    def let_in(self, dispatch: Dispatch | None) -> None:
        """A request goes to SGLang."""
        self.active_requests += 1
        self.drain.observe(Work(queued=1), time.monotonic())
        if dispatch is not None:
            self._arriving.append((time.monotonic(), dispatch))
            self._settle(time.monotonic())

    def answered(self) -> None:
        """Its answer has left, or its client."""
        self.active_requests -= 1

    def refusal_reason(self) -> tuple[RefusalReason, str] | None:
        """Why no request is let in now; None where they are."""
        if not self.serving:
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
        facts = self.facts
        # A request may be in the tokenizer, or its answer on its way out: no scheduler knows of it.
        elsewhere = max(0, self.active_requests - int(facts.total_work))
        work = Work(
            running=int(facts.running),
            queued=int(facts.queued) + elsewhere,
            deflected=int(facts.deflected),
            prefill_bootstrap=int(facts.prefill_bootstrap),
            prefill_inflight=int(facts.prefill_inflight),
            decode_prealloc=int(facts.decode_prealloc),
            decode_transfer=int(facts.decode_transfer),
        )
        self.drain.observe(work, time.monotonic())
        return work

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
        if self.failed_switch is not None:
            return self.failed_switch
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

    def active(self, now: float) -> bool:
        """Whether Duet is active everywhere, as of a second ago at most: for what is asked many times a second."""
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at, self._active = now, self.inactive_reason() is None
        return self._active

    def stuck_reason(self) -> str | None:
        """Why this process should be started anew; None while it moves."""
        return self.failed_switch or stuck_reason(self.schedulers(), now=time.monotonic())

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

    def state(self) -> WorkerState:
        """`GET /duet/state`."""
        return worker_state(self, now=time.monotonic())

    def profile(self) -> WorkerProfile:
        """What this replica can do."""
        arguments, facts = self.server_args, self.facts
        if self._replica is None:
            ranks = arguments.tp_size * arguments.pp_size
            self._replica = replica_model(self.settings, model_path=arguments.model_path, ranks=ranks)
        capacity = Capacity(
            kv_tokens=int(facts.kv_capacity_tokens),
            max_running_requests=int(facts.max_running_requests),
            chunked_prefill_tokens=int(facts.chunked_prefill_tokens),
        )
        return worker_profile(self.settings, self._replica, role=self.role, capacity=capacity)

    def shape(self) -> tuple[float, ...]:
        """What readers of the state want to know of at once when it changes."""
        facts = self.facts
        draining = float(self.terminating or self.drain.active(time.monotonic()))
        return facts.step_kind, facts.decode_requests, facts.total_work, draining, float(self.knobs.generation)

    def accepted_by(self, now: float) -> dict[str, int]:
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
