"""What the load generator says to the demo: one line of JSON for each finished request and for each look at its loop.

Invariant: a record holds only what the client itself saw. Times are seconds since the Unix epoch, so that they can be
laid beside the pods' own timestamps.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from duet_engine.slo import Objective, Outcome


class Record(BaseModel):
    """One finished request."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["request"] = "request"
    index: int
    endpoint: str
    streamed: bool
    sent_at_seconds: float
    duration_seconds: float
    input_tokens: int
    output_tokens: int
    ttft_seconds: float | None = None
    """None where it can't be seen: nothing came, or everything came at once."""
    gaps_milliseconds: tuple[float, ...] = ()
    deflected: bool = False
    failure: str | None = None

    @property
    def ended_at_seconds(self) -> float:
        return self.sent_at_seconds + self.duration_seconds

    def outcome(self, objective: Objective, unloaded_ttft_seconds: float) -> Outcome:
        """The request in the terms of the one attainment function.

        An answer that came in one piece doesn't show when its first token was ready: it may have used the whole TTFT
        objective, and the rest of its time is its decode time.
        """
        ttft_seconds = self.ttft_seconds
        decode_seconds = sum(self.gaps_milliseconds) / 1000
        if ttft_seconds is None:
            ttft_seconds = min(self.duration_seconds, objective.ttft_objective_seconds(unloaded_ttft_seconds))
            decode_seconds = self.duration_seconds - ttft_seconds
        limit_milliseconds = objective.itl_seconds * 1000
        return Outcome(
            succeeded=self.failure is None,
            ttft_seconds=ttft_seconds,
            output_tokens=self.output_tokens,
            decode_seconds=decode_seconds,
            streamed=self.streamed,
            gaps_over_objective=sum(gap > limit_milliseconds for gap in self.gaps_milliseconds),
            unloaded_ttft_seconds=unloaded_ttft_seconds,
        )


class Pulse(BaseModel):
    """The generator itself, about once a second."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["pulse"] = "pulse"
    time_seconds: float
    sent: int
    in_flight: int
    loop_lag_p99_seconds: float
    """Over the whole run so far."""


type_line = Annotated[Record | Pulse, Field(discriminator="kind")]
LINE: TypeAdapter[Record | Pulse] = TypeAdapter(type_line)
