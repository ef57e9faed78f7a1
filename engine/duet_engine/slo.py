"""Whether a request met its objectives: one definition for gateway, simulator, load generator and status.

Invariant: a verdict depends only on what the client saw (when its tokens came), never on who reports it.

A request meets its TTFT objective when its first token came within it. It meets its ITL objective when its TPOT is
within it and at most one gap, or 1 % of its gaps if that is more, exceeds it; a request that wasn't streamed has no
gaps to judge and is judged by its TPOT alone. Attainment is the share of requests that met all their objectives; a
failed request met none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TOLERATED_GAP_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a class of requests was promised."""

    ttft_seconds: float
    itl_seconds: float
    ttft_unloaded_ratio: float | None = None
    """Long prompts: the TTFT objective is at least this many times the request's unloaded TTFT by the model."""

    def ttft_objective_seconds(self, unloaded_ttft_seconds: float = 0.0) -> float:
        """The TTFT objective of a request that would take `unloaded_ttft_seconds` on an idle worker."""
        if self.ttft_unloaded_ratio is None:
            return self.ttft_seconds
        return max(self.ttft_seconds, self.ttft_unloaded_ratio * unloaded_ttft_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a client saw of one request.

    `decode_seconds` runs from the first to the last token, so TPOT is `decode_seconds / (output_tokens - 1)`.
    """

    succeeded: bool
    ttft_seconds: float
    output_tokens: int
    decode_seconds: float
    streamed: bool = True
    gaps_over_objective: int = 0
    unloaded_ttft_seconds: float = 0.0

    @property
    def tpot_seconds(self) -> float:
        """Mean gap between output tokens; 0 for a single token."""
        return self.decode_seconds / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which objectives a request met."""

    ttft_met: bool
    itl_met: bool

    @property
    def met(self) -> bool:
        return self.ttft_met and self.itl_met


def judge(outcome: Outcome, objective: Objective) -> Verdict:
    """Apply the definition above to one finished request."""
    if not outcome.succeeded:
        return Verdict(ttft_met=False, itl_met=False)
    tolerated_gaps = max(1, int(TOLERATED_GAP_SHARE * (outcome.output_tokens - 1)))
    itl_met = outcome.tpot_seconds <= objective.itl_seconds and (
        not outcome.streamed or outcome.gaps_over_objective <= tolerated_gaps
    )
    return Verdict(
        ttft_met=outcome.ttft_seconds <= objective.ttft_objective_seconds(outcome.unloaded_ttft_seconds),
        itl_met=itl_met,
    )


def attainment(verdicts: Iterable[Verdict]) -> float | None:
    """Share of requests that met all their objectives, None for no requests."""
    total = met = 0
    for verdict in verdicts:
        total += 1
        met += verdict.met
    return met / total if total else None
