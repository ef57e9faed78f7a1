"""Whether a prompt is prefilled on a decode worker instead of the prefill pool, and on which.

Kairos' rule (arXiv 2607.02043, section 4.4) deflects when the decode path takes at most alpha times the prefill path
and meets the objective. The lazy rule, the default, first asks whether the prefill path is in danger at all: it
deflects a fifth as many prompts at equal attainment.

Invariant: a prompt goes only where its whole chunk schedule is safe for the decode batch that runs there.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from duet_engine.policy.chunks import (
    ChunkSchedule,
    allowed_sizes,
    largest_safe_chunk,
    largest_safe_schedule,
    step_budget_seconds,
)
from duet_engine.policy.estimates import PRINTED_TERMS, PathTerms
from duet_engine.policy.fleet import DecodeWorker, Prompt
from duet_engine.policy.steadiness import Preferences

MOST_SCHEDULES = 3
"""Worked out for one prompt to find its soonest local path."""


class DeflectionMode(StrEnum):
    """Auto: lazy, several deflected prompts a worker. Paper: Kairos as printed, one a worker. Off: never."""

    AUTO = "Auto"
    PAPER = "Paper"
    OFF = "Off"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeflectionRule:
    """The live settings of deflection, in base units."""

    itl_seconds: float
    mode: DeflectionMode = DeflectionMode.AUTO
    alpha: float = 1.3
    beta: float = 0.85
    lazy_share: float = 0.5
    """Auto: the prefill path is in danger when its TTFT passes this share of the objective."""
    candidates_tokens: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    engine_gap_seconds: float = 0.0
    """What a token takes between the engine's step and the client: the objective is the client's."""
    terms: PathTerms = field(default_factory=PathTerms)
    """What the estimate of the prefill path counts."""

    @property
    def step_budget_seconds(self) -> float:
        return step_budget_seconds(
            itl_seconds=self.itl_seconds, beta=self.beta, engine_gap_seconds=self.engine_gap_seconds
        )


def printed_rule(itl_seconds: float) -> DeflectionRule:
    """Kairos as printed: one prompt a worker, beta 1, the prefill path without transfer and admission."""
    return DeflectionRule(itl_seconds=itl_seconds, mode=DeflectionMode.PAPER, alpha=1.3, beta=1.0, terms=PRINTED_TERMS)


@dataclass(frozen=True, slots=True)
class LocalPace:
    """How fast a worker prefills beside its decode batch, from the largest chunk that is safe for a fresh prompt."""

    chunk_tokens: int
    step_overhead_seconds: float
    """What its decode batch adds to a step of a prompt."""
    ahead_seconds: float
    """What the prompts that already wait there take."""


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A prompt prefilled where it is decoded. `ttft_seconds` counts from now, queue included."""

    worker: DecodeWorker
    schedule: ChunkSchedule
    ahead_seconds: float
    ttft_seconds: float


def takes_prompts(worker: DecodeWorker, rule: DeflectionRule) -> bool:
    """Whether whole prompts may be sent to this worker at all."""
    return worker.prefills and (worker.unified or rule.mode is not DeflectionMode.OFF)


def candidates_for(worker: DecodeWorker, rule: DeflectionRule) -> tuple[int, ...]:
    """The rule's chunk sizes that this worker's buffers allow."""
    return allowed_sizes(rule.candidates_tokens, most_tokens=worker.chunk_tokens)


def local_pace(worker: DecodeWorker, rule: DeflectionRule) -> LocalPace | None:
    """None where no prompt can be taken: not allowed, no safe chunk, or the paper's only one is there."""
    one_at_a_time = rule.mode is DeflectionMode.PAPER and not worker.unified
    if not takes_prompts(worker, rule) or (one_at_a_time and worker.local_prefill_tokens > 0):
        return None
    steps = worker.steps
    safe = largest_safe_chunk(
        steps,
        worker.batch,
        candidates_tokens=candidates_for(worker, rule),
        step_budget_seconds=rule.step_budget_seconds,
    )
    if safe is None:
        return None
    return LocalPace(
        chunk_tokens=safe.size_tokens,
        step_overhead_seconds=safe.seconds - steps.prompt_seconds(safe.size_tokens, chunk_tokens=safe.size_tokens),
        ahead_seconds=worker.local_prefill_tokens * safe.seconds / safe.size_tokens,
    )


def best_local_path(
    prompt: Prompt,
    open_workers: Iterable[tuple[DecodeWorker, LocalPace]],
    rule: DeflectionRule,
    *,
    preferences: Preferences | None = None,
    within_seconds: float = math.inf,
) -> LocalPath | None:
    """The soonest of all; equal ones take turns. None where none is within `within_seconds`, so far as pace tells.

    A schedule is only worked out where it may still be the soonest by its pace: the prompt alone in chunks as large as
    the first, and what the decode batch adds to each. Where steps are linear in tokens that is a lower bound; with the
    roofline it ranks as well (one choice in 500 was not the soonest, and 0.1 % later). Three schedules are enough, and
    one where the next could only be as good.
    """
    preferences = preferences or Preferences()
    ranked = sorted([each for each in _by_pace(prompt, open_workers) if each[0] <= within_seconds], key=_soonest)
    if not ranked:
        return None
    as_good = ranked[0][0] * preferences.margin
    last = bisect_right(ranked, as_good, key=_soonest)
    ranked[:last] = sorted(ranked[:last], key=lambda each: preferences.turn(each[1].key, each[1].dispatches))
    best: LocalPath | None = None
    for soonest, worker, pace in ranked[:MOST_SCHEDULES]:
        if best is not None and soonest * preferences.margin >= best.ttft_seconds:
            break
        path = _local_path(prompt.at(worker.key), worker, pace, rule)
        if path is not None and path.ttft_seconds <= as_good:
            return path
        if path is not None and (best is None or path.ttft_seconds < best.ttft_seconds):
            best = path
    return best


def _soonest(ranked: tuple[float, DecodeWorker, LocalPace]) -> float:
    return ranked[0]


def _by_pace(
    prompt: Prompt, open_workers: Iterable[tuple[DecodeWorker, LocalPace]]
) -> Iterator[tuple[float, DecodeWorker, LocalPace]]:
    """The workers that have room, with the TTFT through each as if the prompt's chunks were all as large as the first.

    What a prompt takes alone is the same for all workers of a kind, so it is worked out once for each.
    """
    alone_seconds: dict[tuple[int, int, int], float] = {}
    warm, excluded, reserve = bool(prompt.warm), prompt.excluded, prompt.output_reserve_tokens
    for worker, pace in open_workers:
        here, chunk_tokens = prompt.at(worker.key) if warm else prompt, pace.chunk_tokens
        fits = worker.free_slots > 0 and here.tokens + reserve <= worker.kv_free_tokens
        if worker.key in excluded or not (fits or has_room(here, worker)):
            continue
        tokens = max(here.tokens, 1)
        kind = id(worker.steps), chunk_tokens, tokens
        alone = alone_seconds.get(kind)
        if alone is None:
            alone = alone_seconds[kind] = worker.steps.prompt_seconds(
                tokens + here.cached_tokens, cached_tokens=here.cached_tokens, chunk_tokens=chunk_tokens
            )
        soonest = pace.ahead_seconds + -(-tokens // chunk_tokens) * pace.step_overhead_seconds + alone
        yield soonest, worker, pace


def _local_path(prompt: Prompt, worker: DecodeWorker, pace: LocalPace, rule: DeflectionRule) -> LocalPath | None:
    schedule = largest_safe_schedule(
        worker.steps,
        worker.batch,
        prompt_tokens=max(prompt.tokens, 1),
        candidates_tokens=candidates_for(worker, rule),
        step_budget_seconds=rule.step_budget_seconds,
        cached_tokens=prompt.cached_tokens,
    )
    if schedule is None:
        return None
    return LocalPath(worker, schedule, pace.ahead_seconds, pace.ahead_seconds + schedule.seconds)


def in_danger(
    prompt: Prompt, rule: DeflectionRule, *, prefill_ttft_seconds: float, threshold_factor: float = 1.0
) -> bool:
    """Whether a prefill path is worth comparing with local ones: always for the paper, else when it's likely late."""
    if rule.mode is DeflectionMode.PAPER:
        return True
    threshold_seconds = threshold_factor * rule.lazy_share * prompt.ttft_objective_seconds
    return prompt.waited_seconds + prefill_ttft_seconds > threshold_seconds


def longest_local_seconds(rule: DeflectionRule, prefill_ttft_seconds: float | None) -> float:
    """A local path that takes longer is never taken, whatever else holds: see `deflects`."""
    if prefill_ttft_seconds is None:
        return math.inf
    return prefill_ttft_seconds * (rule.alpha if rule.mode is DeflectionMode.PAPER else 1.0)


def deflects(
    prompt: Prompt,
    rule: DeflectionRule,
    *,
    prefill_ttft_seconds: float | None,
    local_ttft_seconds: float,
    threshold_factor: float = 1.0,
) -> bool:
    """Whether the local path is taken. `prefill_ttft_seconds` is None when there is no prefill path.

    When neither path can make the objective any more, the sooner one is taken: the lazy rule's comparison covers that.
    """
    if prefill_ttft_seconds is None:
        return True
    if rule.mode is DeflectionMode.PAPER:
        in_time = prompt.waited_seconds + local_ttft_seconds <= prompt.ttft_objective_seconds
        return in_time and local_ttft_seconds <= rule.alpha * prefill_ttft_seconds
    return local_ttft_seconds < prefill_ttft_seconds and in_danger(
        prompt, rule, prefill_ttft_seconds=prefill_ttft_seconds, threshold_factor=threshold_factor
    )


def has_room(prompt: Prompt, worker: DecodeWorker) -> bool:
    """Whether the prompt and its expected answer fit into the worker now."""
    if worker.free_slots <= 0:
        return False
    return prompt.tokens + prompt.output_reserve_tokens <= worker.kv_free_tokens or missing_tokens(prompt, worker) == 0


def missing_tokens(prompt: Prompt, worker: DecodeWorker) -> int:
    """KV that must come free before the prompt and its expected answer fit into the worker.

    Of a cached prefix nothing is missing. A prompt that is larger than the whole cache is passed on: the engine knows
    its limits and says so to the client.
    """
    if prompt.tokens + prompt.cached_tokens > worker.kv_capacity_tokens:
        return 0
    needed_tokens = min(prompt.tokens + prompt.output_reserve_tokens, worker.kv_capacity_tokens)
    return max(0, needed_tokens - worker.kv_free_tokens)
