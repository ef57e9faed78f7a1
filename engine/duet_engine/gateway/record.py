"""What happened to one request, gathered while it is served, and why it missed an objective if it did.

Invariant: attribution is a pure function of the finished record; bad requests and slow clients never count as a lack of
capacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from duet_engine.protocol import MissCause
from duet_engine.slo import Objective, Outcome, Verdict, judge


class End(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"
    """Turned away for lack of capacity."""
    REFUSED = "refused"
    """The engine said that the request itself is wrong."""
    CANCELLED = "cancelled"
    """The client went away."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Which span a request is."""

    trace_id: str
    span_id: str
    parent_id: str = ""

    def header(self) -> str:
        """As W3C Trace Context for whoever is called because of it."""
        return f"00-{self.trace_id}-{self.span_id}-01"


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Times are of the gateway's monotonic clock."""

    arrived_at: float
    path: str
    streamed: bool
    class_name: str = "default"
    key: str = ""
    """Name of the API key's entry; never the key."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    relayed_tokens: int = 0
    """Events with tokens that went by; the engine's own count comes with the end."""
    output_tokens: int = 0
    deflected: bool = False
    route: str = ""
    rid: str = ""
    """Under which the engines of the last attempt know it."""
    retries: int = 0
    dispatched_at: float | None = None
    predicted_ttft_seconds: float = 0.0
    """From dispatch on."""
    predicted_queue_seconds: float = 0.0
    unloaded_ttft_seconds: float = 0.0
    first_at: float | None = None
    answer_begun: bool = False
    """The client has a status and first bytes."""
    last_at: float = 0.0
    gaps_over_objective: int = 0
    gaps_over_for_client: int = 0
    """Of those, the ones in which the client didn't take its bytes."""
    blocked_seconds: float = 0.0
    """Time in which the client didn't take its bytes."""
    loop_lag_seconds: float = 0.0
    accept_wait_seconds: float = 0.0
    """Its connection lay in the kernel's queue, for this process to accept it."""
    trace: TraceContext | None = None
    """Where spans are wanted."""
    end: End | None = None
    error: str = ""

    @property
    def ttft_seconds(self) -> float:
        return (self.first_at if self.first_at is not None else self.last_at) - self.arrived_at

    @property
    def waited_seconds(self) -> float:
        """Held at the gateway before the dispatch that was answered, or to the end."""
        return (self.dispatched_at if self.dispatched_at is not None else self.last_at) - self.arrived_at

    def given_up(self, objective: Objective) -> bool:
        """Its client left when the first token was late already: a miss, or an overload would look like calm.

        When the first token of an answer comes that isn't streamed, nobody sees: only one that never left counts.
        """
        if self.end is not End.CANCELLED or self.first_at is not None:
            return False
        without_token = self.streamed or self.dispatched_at is None
        return without_token and self.ttft_seconds > objective.ttft_objective_seconds(self.unloaded_ttft_seconds)

    def outcome(self) -> Outcome:
        """What the client saw, for the one judgement of attainment."""
        return Outcome(
            succeeded=self.end is End.COMPLETED,
            ttft_seconds=self.ttft_seconds,
            output_tokens=self.output_tokens,
            decode_seconds=self.last_at - self.first_at if self.first_at is not None else 0.0,
            streamed=self.streamed,
            gaps_over_objective=self.gaps_over_objective,
            unloaded_ttft_seconds=self.unloaded_ttft_seconds,
        )


def miss_cause(record: RequestRecord, verdict: Verdict, objective: Objective) -> MissCause | None:
    """Why a request missed an objective; None when it missed none, or when no capacity could have helped it."""
    if verdict.met or record.end is End.REFUSED:
        return None
    if record.end is End.CANCELLED:
        return _late_first_token(record, objective) if record.given_up(objective) else None
    if record.end is End.REJECTED:
        return MissCause.GATE
    if record.end is End.FAILED:
        return MissCause.ENGINE
    return _late_first_token(record, objective) if not verdict.ttft_met else _slow_tokens(record, objective)


def _late_first_token(record: RequestRecord, objective: Objective) -> MissCause:
    allowed_seconds = objective.ttft_objective_seconds(record.unloaded_ttft_seconds)
    if record.unloaded_ttft_seconds > allowed_seconds:
        return MissCause.INFEASIBLE
    excess_seconds = record.ttft_seconds - allowed_seconds
    if record.loop_lag_seconds + record.accept_wait_seconds >= excess_seconds:
        return MissCause.GATEWAY
    queued_seconds = record.waited_seconds + record.predicted_queue_seconds
    return MissCause.QUEUE if queued_seconds >= excess_seconds else MissCause.ENGINE


def _slow_tokens(record: RequestRecord, objective: Objective) -> MissCause:
    outcome = record.outcome()
    without_client = Outcome(
        succeeded=True,
        ttft_seconds=0.0,
        output_tokens=outcome.output_tokens,
        decode_seconds=max(0.0, outcome.decode_seconds - record.blocked_seconds),
        streamed=outcome.streamed,
        gaps_over_objective=outcome.gaps_over_objective - record.gaps_over_for_client,
    )
    if judge(without_client, objective).itl_met:
        return MissCause.CLIENT
    return MissCause.GATEWAY if record.loop_lag_seconds > objective.itl_seconds else MissCause.ENGINE
