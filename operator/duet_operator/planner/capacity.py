"""What a pool of a given size holds at the objectives, from the step model of one replica.

Invariant: every capacity grows with the number of replicas and falls with longer requests, and no other latency formula
than the step model's is used. A capacity is a sustained rate with room for the tail: the waits of a queue and the
swings in the number of resident requests are in it, so demand may be compared with it directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import exp, isfinite, log, sqrt
from typing import TYPE_CHECKING

from duet_engine.protocol import Knobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from duet_engine.slo import Objective
    from duet_operator.planner.types import WorkerPerformance

ITL_SHARE = 0.85
"""Share of the ITL objective that a step may take by the model: a step that aims at all of it misses half the time."""
UNMEETABLE_STEP_RATIO = 1.25
"""Where not even one request meets ITL, decode workers are filled until a step takes this much longer than for one."""
RESERVED_TOKENS_PER_REQUEST = 512
"""KV that SGLang keeps free for each resident request's coming tokens."""
RESIDENT_TAIL = 1.65
"""Standard deviations of the number of resident requests that must still fit (their number is Poisson-like)."""
CHUNK_CANDIDATES_TOKENS = Knobs.model_fields["chunk_candidates_tokens"].default
"""Sizes in which deflected prompts are cut."""
DEFLECTION_SHARE = 0.7
"""Share of the decode workers' headroom that is planned with; the rest covers batches that aren't equally large."""
LOWEST_UTILISATION, HIGHEST_UTILISATION = 0.3, 0.9
GREATEST_SQUARED_VARIATION = 4.0
MOST_REPLICAS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What a typical request looks like, in tokens."""

    input_tokens: float
    cached_tokens: float
    output_tokens: float
    p95_input_tokens: float = 0.0

    @property
    def uncached_tokens(self) -> float:
        return max(self.input_tokens - self.cached_tokens, 1.0)

    @property
    def context_tokens(self) -> float:
        """Mean context of a resident request over its decode."""
        return self.input_tokens + self.output_tokens / 2

    @property
    def squared_variation(self) -> float:
        """Squared coefficient of variation of prompt lengths: log-normal with this mean and P95, else exponential."""
        if self.p95_input_tokens <= 0 or self.input_tokens <= 0:
            return 1.0
        normal_p95 = 1.645
        ratio = max(self.p95_input_tokens / self.input_tokens, 1.0)
        sigma = normal_p95 - sqrt(max(normal_p95**2 - 2 * log(ratio), 0.0))
        return min(exp(sigma**2) - 1, GREATEST_SQUARED_VARIATION)


def utilisation(
    *, servers: int, service_seconds: float, slack_seconds: float, variation: float, miss_share: float
) -> float:
    """Highest share of time that a shared queue's servers may be busy so that waits stay inside the slack.

    Heavy-traffic tail of M/G/c: P(wait > t) ≈ exp(-2·c·(1-ρ)·t / (ρ·s·(1+v))), solved for ρ at the share of requests
    that may miss; M/D/1 is c = 1, v = 0.
    """
    if slack_seconds <= 0:
        return LOWEST_UTILISATION
    tail = log(1 / miss_share) * service_seconds * (1 + variation) / (2 * servers * slack_seconds)
    return min(max(1 / (1 + tail), LOWEST_UTILISATION), HIGHEST_UTILISATION)


def largest(fits: Callable[[int], bool], *, low: int, high: int) -> int:
    """Largest integer in [low, high] that fits, by bisection; low - 1 where none does. `fits` turns false once."""
    below, above = low - 1, high + 1
    while above - below > 1:
        middle = (below + above) // 2
        if fits(middle):
            below = middle
        else:
            above = middle
    return below


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Both pools' replicas under one kind of traffic; asks the step models once per question."""

    prefill: WorkerPerformance
    decode: WorkerPerformance
    lengths: Lengths
    objective: Objective
    attainment_goal: float
    deflection: bool

    # --- decode ---

    @cached_property
    def step_limit_seconds(self) -> float:
        """How long a decode or mixed step may take."""
        idle = self.decode.steps.decode_step_seconds(1, self.lengths.context_tokens)
        return max(ITL_SHARE * self.objective.itl_seconds, UNMEETABLE_STEP_RATIO * idle)

    @property
    def itl_feasible(self) -> bool:
        """Whether one request alone on a decode worker meets the ITL objective."""
        idle = self.decode.steps.decode_step_seconds(1, self.lengths.context_tokens)
        return idle <= ITL_SHARE * self.objective.itl_seconds

    @cached_property
    def most_resident_requests(self) -> int:
        """What a decode worker's memory and settings allow."""
        by_memory = int(self.decode.kv_capacity_tokens / (self.lengths.context_tokens + RESERVED_TOKENS_PER_REQUEST))
        return max(min(by_memory, self.decode.max_running_requests), 1)

    @cached_property
    def decode_batch(self) -> int:
        """Largest batch of a decode worker within ITL, memory and settings."""
        return max(largest(self._decode_fits, low=1, high=self.most_resident_requests), 1)

    def _decode_fits(self, requests: int) -> bool:
        step = self.decode.steps.decode_step_seconds(requests, requests * self.lengths.context_tokens)
        return step <= self.step_limit_seconds

    def output_capacity(self, decode_replicas: int) -> float:
        """Output tokens/s of so many decode workers: n resident requests where n + z·√n just fit."""
        slots = decode_replicas * self.decode_batch
        resident = ((sqrt(RESIDENT_TAIL**2 + 4 * slots) - RESIDENT_TAIL) / 2) ** 2
        step = self.decode.steps.decode_step_seconds(self.decode_batch, self.decode_batch * self.lengths.context_tokens)
        return resident / step

    # --- prefill ---

    @cached_property
    def prompt_seconds(self) -> float:
        """Mean work of one prompt on a prefill worker; long prompts weigh more than their number."""
        steps, lengths = self.prefill.steps, self.lengths
        uncached, cached = lengths.uncached_tokens, lengths.cached_tokens
        launches = -(-uncached // self.prefill.chunked_prefill_tokens) * (
            steps.prefill_step_seconds(1.0) - steps.chunk_seconds(1.0)
        )
        weighted_tokens = uncached * (1 + lengths.squared_variation)
        return launches + uncached * steps.chunk_seconds(weighted_tokens, cached) / weighted_tokens

    @cached_property
    def judged_lengths(self) -> tuple[float, ...]:
        """Prompt lengths whose TTFT is planned for: the mean, and the P95 where an idle worker can meet it at all."""
        typical, long = self.lengths.input_tokens, self.lengths.p95_input_tokens
        return (typical, long) if long > typical and self.idle_slack_seconds(long) > 0 else (typical,)

    @property
    def ttft_feasible(self) -> bool:
        """Whether the mean prompt alone on a prefill worker meets the TTFT objective."""
        return self.idle_slack_seconds(self.lengths.input_tokens) > 0

    def unloaded_ttft_seconds(self, input_tokens: float) -> float:
        """Prefill, transfer and first step on idle workers."""
        share = self.lengths.uncached_tokens / max(self.lengths.input_tokens, 1.0)
        cached = int(input_tokens * max(1 - share, 0.0))
        alone = self.prefill.steps.prompt_seconds(
            max(int(input_tokens), 1), cached_tokens=cached, chunk_tokens=self.prefill.chunked_prefill_tokens
        )
        return alone + self.prefill.steps.transfer_seconds(input_tokens) + self.step_limit_seconds

    def idle_slack_seconds(self, input_tokens: float) -> float:
        """What a prompt of this length may wait on the prefill path."""
        unloaded = self.unloaded_ttft_seconds(input_tokens)
        return self.objective.ttft_objective_seconds(unloaded) - unloaded

    @cached_property
    def prefill_slack_seconds(self) -> float:
        return min(self.idle_slack_seconds(tokens) for tokens in self.judged_lengths)

    def input_capacity(self, prefill_replicas: int) -> float:
        """Uncached input tokens/s of so many prefill workers with the waits inside TTFT."""
        if prefill_replicas <= 0:
            return 0.0
        busy = utilisation(
            servers=prefill_replicas,
            service_seconds=self.prompt_seconds,
            slack_seconds=self.prefill_slack_seconds,
            variation=self.lengths.squared_variation,
            miss_share=self.miss_share,
        )
        return prefill_replicas * busy * self.lengths.uncached_tokens / self.prompt_seconds

    @property
    def miss_share(self) -> float:
        return min(max(1 - self.attainment_goal, 1e-4), 0.5)

    # --- deflection ---

    def headroom(self, output_tokens_per_second: float) -> float:
        """Prefill tokens/s of one decode worker beside its share of the decode work, in mixed steps within the limit.

        The batch is that of steps at the limit: shorter ones leave fewer requests resident, so this errs to the safe.
        """
        limit = self.step_limit_seconds
        requests = output_tokens_per_second * limit
        if requests > self.most_resident_requests:
            return 0.0
        weighted_tokens = self.lengths.uncached_tokens * (1 + self.lengths.squared_variation)
        best = 0.0
        for chunk_tokens in CHUNK_CANDIDATES_TOKENS:
            step = self.decode.steps.mixed_step_seconds(
                requests=requests,
                context_tokens=requests * self.lengths.context_tokens,
                chunk_tokens=chunk_tokens,
                cached_tokens=self.lengths.cached_tokens + max(weighted_tokens - chunk_tokens, 0.0) / 2,
            )
            if step <= limit and chunk_tokens <= self.decode.chunked_prefill_tokens:
                best = max(best, chunk_tokens / step)
        return best

    def deflectable(self, decode_replicas: int, output_tokens_per_second: float) -> float:
        """Uncached input tokens/s that the decode workers can take off the prefill pool within both objectives."""
        if not self.deflection or decode_replicas <= 0:
            return 0.0
        headroom = self.headroom(output_tokens_per_second / decode_replicas)
        if headroom <= 0:
            return 0.0
        slack = min(self._deflected_slack_seconds(tokens, headroom) for tokens in self.judged_lengths)
        if slack <= 0:
            return 0.0
        busy = utilisation(
            servers=decode_replicas,
            service_seconds=self.lengths.uncached_tokens / headroom,
            slack_seconds=slack,
            variation=self.lengths.squared_variation,
            miss_share=self.miss_share,
        )
        return decode_replicas * headroom * min(busy, DEFLECTION_SHARE)

    def _deflected_slack_seconds(self, input_tokens: float, headroom: float) -> float:
        """What a prompt of this length may wait when a decode worker prefills it in chunks."""
        share = self.lengths.uncached_tokens / max(self.lengths.input_tokens, 1.0)
        objective = self.objective.ttft_objective_seconds(self.unloaded_ttft_seconds(input_tokens))
        seconds = objective - input_tokens * share / headroom - self.step_limit_seconds
        return seconds if isfinite(seconds) else 0.0
