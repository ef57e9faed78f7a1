"""A request's workers, from its departure from the queue to its end.

Invariant: whoever holds an assignment must release it; what it counts is counted once, and given back once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from duet_engine.gateway.sent_work import SentWork
from duet_engine.gateway.workers import Worker
from duet_engine.policy.class_gate import Underway
from duet_engine.policy.routes import Local, Pair
from duet_engine.protocol import Role


@dataclass(slots=True, eq=False)
class Assignment:
    """A request's workers. `prefill` is None when the decode worker prefills."""

    route: Pair | Local
    decode: Worker
    decode_work: SentWork
    prefill: Worker | None
    prefill_work: SentWork | None
    unloaded_ttft_seconds: float
    class_name: str = ""
    underway: Underway = field(default_factory=Underway)
    """Counts it, as computing until its first token has come, and as there until it is released."""
    _computing: bool = True
    _released: bool = False

    def __post_init__(self) -> None:
        self.underway.prefilling[self.class_name] += 1
        self.underway.requests += 1

    @property
    def deflected(self) -> bool:
        return self.prefill is None and self.decode.member.role is Role.DECODE

    def explanation(self) -> str:
        """For the response header and the access log."""
        if isinstance(self.route, Local):
            kind = "deflected" if self.deflected else "unified"
            return f"{kind}={self.decode.name} reason={self.route.reason}"
        assert self.prefill is not None
        return f"prefill={self.prefill.name} decode={self.decode.name}"

    def workers(self) -> list[Worker]:
        return [self.decode] if self.prefill is None else [self.prefill, self.decode]

    def prefill_ended(self) -> None:
        """The prompt has left the prefill worker."""
        if self.prefill is not None and self.prefill_work is not None:
            self.prefill.ended(self.prefill_work)
            self._computed()

    def first_token_came(self) -> None:
        """The decode worker has computed the prompt, or got it."""
        self.decode.prompt_done(self.decode_work)
        self._computed()

    def _computed(self) -> None:
        if self._computing:
            self._computing = False
            self.underway.prefilling[self.class_name] -= 1

    def release(self) -> None:
        """The request has left its workers."""
        self.prefill_ended()
        self._computed()
        if not self._released:
            self._released = True
            self.underway.requests -= 1
        self.decode.ended(self.decode_work)
