"""A request's workers, from its departure from the queue to its end.

Invariant: whoever holds an assignment must release it; what it counts is counted once, and given back once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from duet_engine.gateway.workers import SentWork, Worker
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
    prefilling: Counter[str] = field(default_factory=Counter)
    """The count of those like it whose first token hasn't come, with it among them until then."""

    _computing: bool = True

    def __post_init__(self) -> None:
        self.prefilling[self.class_name] += 1

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
            self.prefilling[self.class_name] -= 1

    def release(self) -> None:
        """The request has left its workers."""
        self.prefill_ended()
        self._computed()
        self.decode.ended(self.decode_work)
