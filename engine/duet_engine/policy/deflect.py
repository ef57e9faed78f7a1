"""Whether a prompt is prefilled on a decode worker instead of the prefill pool, and on which.

Kairos' rule (arXiv 2607.02043, section 4.4) deflects when the decode path takes at most alpha times the prefill path
and meets the objective. The lazy rule, the default, first asks whether the prefill path is in danger at all: it
deflects a fifth as many prompts at equal attainment.

Invariant: a prompt goes only where its whole chunk schedule is safe for the decode batch that runs there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from duet_engine.perf.interface import StepBatch, StepTimes
from duet_engine.policy.chunks import ChunkSchedule, allowed_sizes, largest_safe_schedule, step_budget_seconds
from duet_engine.policy.estimates import PRINTED_TERMS, PathTerms
from duet_engine.policy.fleet import DecodeWorker, Prompt

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
    candidates = candidates_for(worker, rule)
    first = largest_safe_schedule(
        worker.steps,
        worker.batch,
        prompt_tokens=candidates[0],
        candidates_tokens=candidates,
        step_budget_seconds=rule.step_budget_seconds,
    )
    if first is None:
        return None
    beside_seconds = first.seconds - _alone_seconds(worker.steps, first)
    return LocalPace(
        chunk_tokens=first.chunks_tokens[0],
        step_overhead_seconds=beside_seconds / len(first.chunks_tokens),
        ahead_seconds=worker.local_prefill_tokens * first.seconds / candidates[0],
    )


def best_local_path(
    prompt: Prompt, open_workers: Iterable[tuple[DecodeWorker, LocalPace]], rule: DeflectionRule
) -> LocalPath | None:
    """The soonest of all; equal ones take turns.

    A schedule is only worked out where it may still be the soonest by its pace: the prompt alone in chunks as large as
    the first, and what the decode batch adds to each. Where steps are linear in tokens that is a lower bound; with the
    roofline it ranks as well (one choice in 500 was not the soonest, and 0.1 % later). Three schedules are enough.
    """
    ranked = sorted(
        (soonest_seconds(prompt, worker, pace), worker.dispatches, worker.key, worker, pace)
        for worker, pace in open_workers
        if worker.key not in prompt.excluded and has_room(prompt, worker)
    )
    best: LocalPath | None = None
    for index, (soonest, _, _, worker, pace) in enumerate(ranked):
        if best is not None and (soonest >= best.ttft_seconds or index >= MOST_SCHEDULES):
            break
        path = _local_path(prompt, worker, pace, rule)
        if path is not None and (best is None or path.ttft_seconds < best.ttft_seconds):
            best = path
    return best


def soonest_seconds(prompt: Prompt, worker: DecodeWorker, pace: LocalPace) -> float:
    """The TTFT from now through this worker by its pace, as if the prompt's chunks were all as large as the first."""
    tokens = max(prompt.tokens, 1)
    steps = -(-tokens // pace.chunk_tokens)
    alone_seconds = worker.steps.prompt_seconds(
        tokens + prompt.cached_tokens, cached_tokens=prompt.cached_tokens, chunk_tokens=pace.chunk_tokens
    )
    return pace.ahead_seconds + steps * pace.step_overhead_seconds + alone_seconds


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


def _alone_seconds(steps: StepTimes, schedule: ChunkSchedule) -> float:
    """The same chunks of a fresh prompt without a decode batch beside them."""
    seconds, done_tokens = 0.0, 0
    for tokens in schedule.chunks_tokens:
        seconds += steps.step_seconds(StepBatch.prefill(tokens, done_tokens))
        done_tokens += tokens
    return seconds


def in_danger(prompt: Prompt, rule: DeflectionRule, *, prefill_ttft_seconds: float) -> bool:
    """Whether a prefill path is worth comparing with local ones: always for the paper, else when it's likely late."""
    if rule.mode is DeflectionMode.PAPER:
        return True
    return prompt.waited_seconds + prefill_ttft_seconds > rule.lazy_share * prompt.ttft_objective_seconds


def deflects(
    prompt: Prompt, rule: DeflectionRule, *, prefill_ttft_seconds: float | None, local_ttft_seconds: float
) -> bool:
    """Whether the local path is taken. `prefill_ttft_seconds` is None when there is no prefill path.

    When neither path can make the objective any more, the sooner one is taken: the lazy rule's comparison covers that.
    """
    if prefill_ttft_seconds is None:
        return True
    if rule.mode is DeflectionMode.PAPER:
        in_time = prompt.waited_seconds + local_ttft_seconds <= prompt.ttft_objective_seconds
        return in_time and local_ttft_seconds <= rule.alpha * prefill_ttft_seconds
    sooner = local_ttft_seconds < prefill_ttft_seconds
    return sooner and in_danger(prompt, rule, prefill_ttft_seconds=prefill_ttft_seconds)


def has_room(prompt: Prompt, worker: DecodeWorker) -> bool:
    """Whether the prompt and its expected answer fit into the worker now."""
    return worker.free_slots > 0 and missing_tokens(prompt, worker) == 0


def missing_tokens(prompt: Prompt, worker: DecodeWorker) -> int:
    """KV that must come free before the prompt and its expected answer fit into the worker.

    Of a cached prefix nothing is missing. A prompt that is larger than the whole cache is passed on: the engine knows
    its limits and says so to the client.
    """
    if prompt.tokens + prompt.cached_tokens > worker.kv_capacity_tokens:
        return 0
    needed_tokens = min(prompt.tokens + prompt.output_reserve_tokens, worker.kv_capacity_tokens)
    return max(0, needed_tokens - worker.kv_free_tokens)
