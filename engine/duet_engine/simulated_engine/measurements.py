"""What the engine counts for `/metrics`, kept as plain numbers because it is touched for every token.

Invariant: counts only grow. Bucket bounds are SGLang's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duet_engine.distribution import Distribution
from duet_engine.protocol import RefusalReason

if TYPE_CHECKING:
    from duet_engine.simulated_engine.request import Failure, Request

TTFT_SECONDS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
ITL_SECONDS = (
    *(0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060, 0.080, 0.100),
    *(0.200, 0.400, 0.600, 0.800, 1, 2, 4, 6, 8),
)
E2E_SECONDS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400)
TOKENS = (100, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10_000, 20_000, 40_000)


@dataclass(slots=True)
class RequestTimes:
    """What SGLang counts apart for streamed and other requests."""

    ttft_seconds: Distribution = field(default_factory=lambda: Distribution(TTFT_SECONDS))
    tpot_seconds: Distribution = field(default_factory=lambda: Distribution(ITL_SECONDS))
    e2e_seconds: Distribution = field(default_factory=lambda: Distribution(E2E_SECONDS))
    finished_requests: int = 0


@dataclass(slots=True)
class Measurements:
    """Counters and distributions over all requests of this process."""

    streamed: RequestTimes = field(default_factory=RequestTimes)
    whole: RequestTimes = field(default_factory=RequestTimes)
    itl_seconds: Distribution = field(default_factory=lambda: Distribution(ITL_SECONDS))
    queue_seconds: Distribution = field(default_factory=lambda: Distribution(TTFT_SECONDS))
    prompt_tokens: Distribution = field(default_factory=lambda: Distribution(TOKENS))
    generation_tokens: Distribution = field(default_factory=lambda: Distribution(TOKENS))
    aborted_requests: int = 0
    failed_bootstraps: int = 0
    failed_transfers: int = 0
    refusals: dict[RefusalReason, int] = field(default_factory=lambda: dict.fromkeys(RefusalReason, 0))

    def observe_token(self, request: Request) -> None:
        """One output token came."""
        if request.generated_tokens == 1:
            self._times(request).ttft_seconds.observe(request.last_token_at - request.arrived_at)
        else:
            self.itl_seconds.observe(request.gap_seconds)

    def observe_finished(self, request: Request) -> None:
        """A request got all its tokens."""
        times = self._times(request)
        times.finished_requests += 1
        times.e2e_seconds.observe(request.last_token_at - request.arrived_at)
        if request.started_at is not None:
            self.queue_seconds.observe(max(0.0, request.started_at - request.arrived_at))
        self.prompt_tokens.observe(request.prompt_tokens)
        self.generation_tokens.observe(request.generated_tokens)
        if request.first_token_at is not None and request.generated_tokens > 1:
            decode_seconds = request.last_token_at - request.first_token_at
            times.tpot_seconds.observe(decode_seconds / (request.generated_tokens - 1))

    def observe_failed(self, failure: Failure) -> None:
        """A request ended without its tokens."""
        if failure.refusal is not None:
            self.refusals[failure.refusal.reason] += 1
        else:
            self.aborted_requests += 1

    def _times(self, request: Request) -> RequestTimes:
        return self.streamed if request.streamed else self.whole
