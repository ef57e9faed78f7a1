"""What a pool of a given size holds at the objectives, from the step model of one replica.

Invariant: every capacity grows with the number of replicas and falls with longer requests, and no other latency formula
than the step model's is used. A capacity is a sustained rate with room for the tail: the waits of a queue and the
swings in the number of resident requests are in it, so demand may be compared with it directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch, weakest
from duet_engine.policy.chunks import SafeSizes, allowed_sizes
from duet_engine.policy.estimates import unloaded_pair_seconds
from duet_engine.protocol import Knobs
from duet_operator.planner.waits import Patience, WaitLimit, utilisation, wait_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from duet_engine.perf.interface import Basis
    from duet_engine.slo import Objective
    from duet_operator.planner.lengths import Lengths
    from duet_operator.planner.load import Load
    from duet_operator.planner.types import WorkerPerformance

ITL_SHARE = 0.85
"""Share of the ITL objective that a step may take by the model: a step that aims at all of it misses half the time."""
UNMEETABLE_STEP_RATIO = 1.25
"""Where not even one request meets ITL, decode workers are filled until a step takes this much longer than for one."""
RESERVED_TOKENS_PER_REQUEST = 512
"""KV that SGLang keeps free for each resident request's coming tokens."""
RESIDENT_TAIL = 1.65
"""Standard deviations of the number of resident requests that must still fit (their number is Poisson-like)."""
CHUNK_CANDIDATES_TOKENS: tuple[int, ...] = Knobs.model_fields["chunk_candidates_tokens"].default
"""Sizes in which deflected prompts are cut."""
DEFLECTION_SHARE = 0.7
"""Share of the decode workers' headroom that is planned with; the rest covers batches that aren't equally large."""
MOST_REPLICAS = 4096
REMEMBERED_RATES = 256
"""Of one fleet; with other lengths of requests it's another one."""


def fewest(enough: Callable[[int], bool], *, most: int) -> int:
    """Smallest number from 0 on that is enough, most + 1 where none is. Whatever is greater than enough must be too."""
    below, above = -1, 0
    while above <= most and not enough(above):
        below, above = above, 2 * above + 1
    above = min(above, most + 1)
    while above - below > 1:
        middle = (below + above) // 2
        if enough(middle):
            above = middle
        else:
            below = middle
    return above


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Replicas of both pools under one kind of traffic."""

    prefill: WorkerPerformance
    decode: WorkerPerformance
    lengths: Lengths
    objective: Objective
    attainment_goal: float
    deflection: bool

    @property
    def basis(self) -> Basis:
        """What these capacities rest on: the weaker of both pools' step times, and with deflection those of chunks."""
        bases = [self.prefill.basis, self.decode.basis]
        if self.deflection:
            bases.append(self.decode.steps.step(StepBatch.decode(1, 1).with_chunks(1)).basis)
        return weakest(*bases)

    # --- decode ---

    @cached_property
    def step_limit_seconds(self) -> float:
        """How long a decode or mixed step may take."""
        return max(ITL_SHARE * self.objective.itl_seconds, UNMEETABLE_STEP_RATIO * self._lone_step_seconds)

    @property
    def itl_feasible(self) -> bool:
        """Whether one request alone on a decode worker meets the ITL objective."""
        return self._lone_step_seconds <= ITL_SHARE * self.objective.itl_seconds

    @cached_property
    def _lone_step_seconds(self) -> float:
        return self._decode_step_seconds(1)

    @cached_property
    def most_resident_requests(self) -> int:
        """What a decode worker's memory and settings allow."""
        by_memory = int(self.decode.kv_capacity_tokens / (self.lengths.context_tokens + RESERVED_TOKENS_PER_REQUEST))
        return max(min(by_memory, self.decode.max_running_requests), 1)

    @cached_property
    def decode_batch(self) -> int:
        """Largest batch of a decode worker within ITL, memory and settings."""
        too_many = fewest(
            lambda requests: self._decode_step_seconds(requests) > self.step_limit_seconds,
            most=self.most_resident_requests,
        )
        return max(too_many - 1, 1)

    def _decode_step_seconds(self, requests: int) -> float:
        return self.decode.steps.step_seconds(self._decode_batch_of(requests))

    def _decode_batch_of(self, requests: float) -> StepBatch:
        return StepBatch.decode(requests, requests * self.lengths.context_tokens)

    def output_capacity(self, decode_replicas: int) -> float:
        """Output tokens/s of so many decode workers: n resident requests where n + z·√(n·(1+v)) just fit."""
        slots = decode_replicas * self.decode_batch
        tail = RESIDENT_TAIL * sqrt(1 + self._load_variation)
        resident = ((sqrt(tail**2 + 4 * slots) - tail) / 2) ** 2
        return resident / self._full_step_seconds

    @cached_property
    def _full_step_seconds(self) -> float:
        return self._decode_step_seconds(self.decode_batch)

    @cached_property
    def _load_variation(self) -> float:
        """Squared coefficient of variation of what one resident request adds to a step: its context varies, its row
        doesn't."""
        batch, seconds = self.decode_batch, self.decode.steps.step_seconds
        added = self._full_step_seconds - self._lone_step_seconds
        if batch == 1 or added <= 0:
            return 0.0
        rows = seconds(StepBatch.decode(batch, batch)) - seconds(StepBatch.decode(1, 1))
        context_share = min(max(1 - rows / added, 0.0), 1.0)
        prompt_share = self.lengths.input_tokens / self.lengths.context_tokens
        return (context_share * prompt_share) ** 2 * self.lengths.squared_variation

    # --- prefill ---

    @cached_property
    def prompt_seconds(self) -> float:
        """Mean work of one prompt on a prefill worker: what the classes of prompts take for each of their tokens."""
        classes = [self._split(tokens) for tokens in self.lengths.typical_inputs()]
        work_seconds = math.fsum(
            self.prefill.steps.prompt_seconds(
                uncached + cached, cached_tokens=cached, chunk_tokens=self.prefill.chunked_prefill_tokens
            )
            for uncached, cached in classes
        )
        return self.lengths.uncached_tokens * work_seconds / sum(uncached for uncached, _ in classes)

    def _split(self, input_tokens: float) -> tuple[int, int]:
        """Tokens of a prompt of this length that must be computed, and those that needn't."""
        uncached = max(int(input_tokens * self.lengths.uncached_share), 1)
        return uncached, max(int(input_tokens) - uncached, 0)

    def unloaded_ttft_seconds(self, input_tokens: float) -> float:
        """Prefill, transfer and first step on idle workers."""
        uncached, cached = self._split(input_tokens)
        pair_seconds = unloaded_pair_seconds(
            uncached,
            self.prefill.steps,
            cached_tokens=cached,
            chunk_tokens=self.prefill.chunked_prefill_tokens,
        )
        return pair_seconds + self.step_limit_seconds

    @property
    def ttft_feasible(self) -> bool:
        """Whether the mean prompt alone on a prefill worker meets the TTFT objective."""
        unloaded = self.unloaded_ttft_seconds(self.lengths.input_tokens)
        return unloaded < self.objective.ttft_objective_seconds(unloaded)

    @cached_property
    def _unloaded_ttfts(self) -> tuple[tuple[float, float], ...]:
        """Prompt length and unloaded TTFT of each class of prompts."""
        return tuple((tokens, self.unloaded_ttft_seconds(tokens)) for tokens in self.lengths.typical_inputs())

    @cached_property
    def _prefill_wait_limit(self) -> WaitLimit:
        return wait_limit(
            [
                Patience(self.objective.ttft_objective_seconds(unloaded) - unloaded, self.objective.ttft_seconds)
                for _, unloaded in self._unloaded_ttfts
            ],
            self._miss_share,
        )

    @property
    def _miss_share(self) -> float:
        return min(max(1 - self.attainment_goal, 1e-4), 0.5)

    def input_capacity(self, prefill_replicas: int) -> float:
        """Uncached input tokens/s of so many prefill workers with the waits inside TTFT."""
        if prefill_replicas <= 0:
            return 0.0
        known = self._input_capacities
        if prefill_replicas not in known:
            known[prefill_replicas] = self._input_capacity(prefill_replicas)
        return known[prefill_replicas]

    @cached_property
    def _input_capacities(self) -> dict[int, float]:
        """By the number of workers: a plan asks for the same few again and again."""
        return {}

    def _input_capacity(self, prefill_replicas: int) -> float:
        busy = utilisation(
            servers=prefill_replicas,
            service_seconds=self.prompt_seconds,
            limit=self._prefill_wait_limit,
            variation=self.lengths.squared_variation,
        )
        return prefill_replicas * busy * self.lengths.uncached_tokens / self.prompt_seconds

    # --- deflection ---

    def headroom(self, output_tokens_per_second: float) -> float:
        """Prefill tokens/s of one decode worker beside its share of the decode work, in the largest safe chunks.

        The batch is that of steps at the limit: shorter ones leave fewer requests resident, so this errs to the safe.
        """
        limit = self.step_limit_seconds
        requests = output_tokens_per_second * limit
        if requests > self.most_resident_requests:
            return 0.0
        decoding = self._decode_batch_of(requests)
        prompt_tokens, cached_tokens = self.lengths.weighted_uncached_tokens, self.lengths.cached_tokens

        def beside(chunk_tokens: int) -> StepBatch:
            """The batch and a chunk from the middle of a prompt."""
            return decoding.with_chunks(chunk_tokens, cached_tokens + max(prompt_tokens - chunk_tokens, 0.0) / 2)

        sizes = allowed_sizes(CHUNK_CANDIDATES_TOKENS, most_tokens=self.decode.chunked_prefill_tokens)
        safe = SafeSizes(sizes, limit).largest(beside, self.decode.steps.step_seconds)
        return safe.size_tokens / safe.seconds if safe else 0.0

    def deflectable(self, decode_replicas: int, load: Load) -> float:
        """Uncached input tokens/s that the decode workers can take off the prefill pool within both objectives.

        Prompts that only a prefill worker finishes in time stay with the prefill pool.
        """
        if not self.deflection or decode_replicas <= 0:
            return 0.0
        key, known = (decode_replicas, load.output_tokens), self._deflected_rates
        if key not in known:
            if len(known) >= REMEMBERED_RATES:
                known.clear()
            known[key] = self._deflected_rate(*key)
        rate, in_time_share = known[key]
        return min(rate, in_time_share * load.input_tokens)

    @cached_property
    def _deflected_rates(self) -> dict[tuple[int, float], tuple[float, float]]:
        """By the number of workers and their output: a plan asks for the same few again and again."""
        return {}

    def _deflected_rate(self, decode_replicas: int, output_tokens: float) -> tuple[float, float]:
        """Uncached input tokens/s that so many take beside their output, and the share of them that may be theirs."""
        headroom = self.headroom(output_tokens / decode_replicas)
        if headroom <= 0:
            return 0.0, 0.0
        in_time_share, limit = self._deflected_classes(headroom)
        busy = utilisation(
            servers=decode_replicas,
            service_seconds=self.lengths.uncached_tokens / headroom,
            limit=limit,
            variation=self.lengths.squared_variation,
        )
        return decode_replicas * headroom * min(busy, DEFLECTION_SHARE), in_time_share

    def _deflected_classes(self, headroom: float) -> tuple[float, WaitLimit]:
        """Share of prompt tokens that needn't stay with the prefill pool, and how long prompts may wait."""
        patiences: list[Patience] = []
        needing_prefill = total = 0.0
        for tokens, unloaded in self._unloaded_ttfts:
            objective = self.objective.ttft_objective_seconds(unloaded)
            slack = objective - tokens * self.lengths.uncached_share / headroom - self.step_limit_seconds
            total += tokens
            if slack <= 0 < objective - unloaded:
                needing_prefill += tokens
            patiences.append(Patience(slack, self.objective.ttft_seconds))
        return 1 - needing_prefill / total, wait_limit(patiences, self._miss_share)
