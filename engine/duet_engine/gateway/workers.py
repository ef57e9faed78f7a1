"""Every worker's load as this gateway knows it: its last reported state and what was sent since.

Invariant: each of this gateway's dispatches is counted exactly once: by this module until a state says that it includes
it (`WorkerState.accepted`), by that state afterwards, and no more once it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from duet_engine.gateway.breaker import Breaker
from duet_engine.gateway.discovery import Member
from duet_engine.gateway.sent_work import SentWork, queued_kv_tokens, work_ahead
from duet_engine.perf.interface import StepTimes
from duet_engine.perf.replica import replica_from_document
from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.fleet import DecodeWorker, Fleet, PrefillWorker
from duet_engine.protocol import RefusalReason, Role, WorkerInfo, WorkerProfile, WorkerState

STALE_SECONDS = 15.0
"""A state this old says nothing: whoever should have noticed that the stream is silent doesn't run any more."""
_NOT_READY_REFUSALS = (RefusalReason.DRAINING, RefusalReason.NOT_READY, RefusalReason.WRONG_ROLE)


class Worker:
    """One engine. Without a profile it can't be planned for and gets nothing."""

    def __init__(self, member: Member, *, gateway_id: str) -> None:
        self.member = member
        self.key = member.uid
        self.prefills_only = member.role is Role.PREFILL
        self.name = member.name
        self.gateway_id = gateway_id
        self.connected = False
        self.plain = False
        """SGLang without Duet's endpoints: it is asked for its load, and its requests carry no field of ours."""
        self.state: WorkerState | None = None
        self.state_received_at = 0.0
        self.profile: WorkerProfile | None = None
        self.bootstrap_port = member.bootstrap_port
        self.steps: StepTimes | None = None
        self.keeps_prefixes = False
        self.breaker = Breaker()
        self.errors_total = 0
        self.refusals_total = 0
        self.on_lost: set[Callable[[Worker], None]] = set()
        """Who wants to know when nothing is heard of it any more."""
        self._sequence = 0
        self._sent: dict[int, SentWork] = {}
        self._pending: dict[int, SentWork] = {}
        """Those of them that no state includes yet."""
        self._out_of_service = False
        self._deflection_refused = False
        self.usable_until = 0.0
        """It is, until then, unless something changes."""
        self._decode_view: DecodeWorker | None = None
        self._prefill_view: PrefillWorker | None = None
        self._ahead: tuple[float, float, int] | None = None

    @property
    def revision(self) -> str:
        return self.member.revision or (self.state.revision if self.state else "")

    @property
    def kv_capacity_tokens(self) -> int:
        """As the running engine says, else as planned; 0 when neither is known."""
        said = self.state.kv_capacity_tokens if self.state else 0
        return said or (self.profile.kv_capacity_tokens if self.profile else 0)

    @property
    def dispatches(self) -> int:
        """How many it has been sent."""
        return self._sequence

    @property
    def inflight(self) -> int:
        return len(self._sent)

    # --- what is heard ---

    def listed(self, member: Member) -> None:
        """Discovery says what it is now; who it is never changes."""
        self.member = member
        self.name = member.name
        self._changed()

    def describe(self, info: WorkerInfo) -> None:
        """The worker said what it is."""
        self.profile = info.profile
        self.steps = replica_from_document(info.profile.replica)
        self.keeps_prefixes = info.prefix_cache
        self.bootstrap_port = info.bootstrap_port or self.member.bootstrap_port
        self._changed()

    def heard(self, state: WorkerState, now: float) -> None:
        """A line of its state stream: newer than whatever a refusal made this gateway believe."""
        self.state = state
        self.state_received_at = now
        self.connected = True
        self._out_of_service = False
        self._deflection_refused = False
        included = state.accepted.get(self.gateway_id, 0)
        for sequence in [each for each in self._pending if each <= included]:
            del self._pending[sequence]
        self._changed()

    def lost(self) -> None:
        """The state stream broke, or the worker is gone altogether."""
        self.connected = False
        self._changed()
        for tell in tuple(self.on_lost):
            tell(self)

    def refused(self, reason: RefusalReason) -> None:
        """It took nothing; believe it until its next state."""
        self.refusals_total += 1
        if reason in _NOT_READY_REFUSALS:
            self._out_of_service = True
        elif reason is RefusalReason.DEFLECTION_OFF:
            self._deflection_refused = True
        self._changed()

    def failed(self, now: float) -> None:
        self.errors_total += 1
        self.breaker.failed(now)
        self.usable_until = 0.0

    # --- what is sent ---

    def send(self, *, prompt_tokens: int, output_reserve_tokens: int, local: bool) -> SentWork:
        """Count a dispatch from now on."""
        self._sequence += 1
        work = SentWork(
            sequence=self._sequence,
            prompt_tokens=prompt_tokens,
            output_reserve_tokens=output_reserve_tokens,
            local=local,
            probe=self.breaker.sent(),
        )
        self._sent[work.sequence] = self._pending[work.sequence] = work
        self._work_changed()
        return work

    def prompt_done(self, work: SentWork) -> None:
        """Its first token is here: until a state says so, it counts as a running request and no more as a prompt."""
        if work.local and work.sequence in self._pending:
            self._pending[work.sequence] = replace(work, local=False)
            self._work_changed()

    def ended(self, work: SentWork) -> None:
        """The dispatch is over, however it ended."""
        if self._sent.pop(work.sequence, None) is None:
            return
        self._pending.pop(work.sequence, None)
        self._work_changed()
        if work.probe:
            self.breaker.probe_ended()

    # --- what routing sees ---

    def usable(self, now: float) -> bool:
        """Whether it may get new work."""
        if now < self.usable_until:
            return True
        serving = self._takes_work() and now - self.state_received_at < STALE_SECONDS
        if serving and not self.breaker.ejected:
            self.usable_until = self.state_received_at + STALE_SECONDS
        return serving and self.breaker.allows(now)

    def _takes_work(self) -> bool:
        """By all that it and discovery have said."""
        state = self.state
        return (
            self.member.ready
            and self.connected
            and state is not None
            and state.ready
            and not state.draining
            and not self._out_of_service
            and self.steps is not None
        )

    def _changed(self) -> None:
        """It may serve or not serve now."""
        self.usable_until = 0.0
        self._work_changed()

    def _work_changed(self) -> None:
        """Its views are to be made anew. Until then they stay the same objects, of which policies know the figures."""
        self._decode_view = self._prefill_view = self._ahead = None

    def prefill_view(self, now: float) -> PrefillWorker:
        """As a prefill worker; only for usable ones."""
        if self._ahead is None:
            assert self.state and self.profile and self.steps
            self._ahead = work_ahead(
                self.state,
                self.steps,
                chunk_tokens=self.profile.chunked_prefill_tokens,
                received_at=self.state_received_at,
                unconfirmed_tokens=[work.prompt_tokens for work in self._pending.values()],
            )
        done_at, unconfirmed_seconds, queued_tokens = self._ahead
        ahead_seconds = (done_at - now if done_at > now else 0.0) + unconfirmed_seconds
        if self._prefill_view is None:
            assert self.profile and self.steps
            self._prefill_view = PrefillWorker(
                key=self.key,
                revision=self.revision,
                steps=self.steps,
                chunk_tokens=self.profile.chunked_prefill_tokens,
                queued_tokens=queued_tokens,
                dispatches=self._sequence,
            )
        # In place: nobody keeps a view of a prefill worker beyond a pass, and a new one takes ten times as long.
        object.__setattr__(self._prefill_view, "ahead_seconds", ahead_seconds)
        return self._prefill_view

    def decode_view(self) -> DecodeWorker:
        """As a decode or unified worker; only for usable ones."""
        if self._decode_view is None:
            self._decode_view = self._as_decode_worker()
        return self._decode_view

    def _as_decode_worker(self) -> DecodeWorker:
        assert self.state and self.profile and self.steps
        state, unconfirmed = self.state, list(self._pending.values())
        joining = [work for work in unconfirmed if not work.local]
        local = [work for work in unconfirmed if work.local]
        arriving = state.work.decode_prealloc + state.work.decode_transfer
        requests = state.decode_requests + arriving
        capacity_tokens = self.kv_capacity_tokens
        claimed_tokens = sum(work.prompt_tokens + work.output_reserve_tokens for work in unconfirmed)
        unified = self.member.role is Role.UNIFIED
        return DecodeWorker(
            key=self.key,
            revision=self.revision,
            steps=self.steps,
            chunk_tokens=self.profile.chunked_prefill_tokens,
            batch=DecodeBatch(
                requests + len(joining), state.decode_context_tokens + sum(work.prompt_tokens for work in joining)
            ),
            kv_capacity_tokens=capacity_tokens,
            kv_free_tokens=(
                capacity_tokens
                - state.kv_used_tokens
                - state.kv_reserved_tokens
                - queued_kv_tokens(state, self._sent.values(), confirmed=state.accepted.get(self.gateway_id, 0))
                - claimed_tokens
            ),
            free_slots=self.profile.max_running_requests - requests - state.work.deflected - len(unconfirmed),
            prefills=unified or (state.deflection_active and not self._deflection_refused),
            unified=unified,
            local_prefill_tokens=(
                (state.queued_prefill_tokens if unified else state.queued_deflected_tokens)
                + sum(work.prompt_tokens for work in local)
            ),
            dispatches=self._sequence,
        )


class Workers:
    """All workers by key."""

    def __init__(self, gateway_id: str) -> None:
        self._gateway_id = gateway_id
        self._workers: dict[str, Worker] = {}
        self._usable: list[Worker] = []
        self._profiles: list[WorkerProfile | None] = []
        self._members = object()
        """Anew whenever one of them comes, goes, or is described otherwise."""

    @property
    def gateway_id(self) -> str:
        """By which workers tell this gateway's dispatches from others'."""
        return self._gateway_id

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __getitem__(self, key: str) -> Worker:
        return self._workers[key]

    def update(self, members: Iterable[Member]) -> tuple[list[Worker], list[Worker]]:
        """Take over a complete set; returns the workers that came and those that went."""
        present = {member.uid: member for member in members}
        gone = [worker for key, worker in self._workers.items() if key not in present]
        for worker in gone:
            del self._workers[worker.key]
        come = []
        for key, member in present.items():
            if key in self._workers:
                self._workers[key].listed(member)
            else:
                self._workers[key] = Worker(member, gateway_id=self._gateway_id)
                come.append(self._workers[key])
        return come, gone

    def fleet(self, now: float) -> Fleet:
        """Those that may get new work, as values."""
        usable = [worker for worker in self._workers.values() if now < worker.usable_until or worker.usable(now)]
        profiles = [worker.profile for worker in usable]
        if usable != self._usable or profiles != self._profiles:
            self._usable, self._profiles, self._members = usable, profiles, object()
        prefill = [worker.prefill_view(now) for worker in usable if worker.prefills_only]
        decode = [worker.decode_view() for worker in usable if not worker.prefills_only]
        return Fleet(tuple(prefill), tuple(decode), self._members)
