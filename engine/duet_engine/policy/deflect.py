"""Whether a prompt is prefilled on a decode worker instead of the prefill pool, and on which.

Kairos' rule (arXiv 2607.02043, section 4.4) deflects when the decode path takes at most alpha times the prefill path
and meets the objective. The lazy rule, the default, first asks whether the prefill path is in danger at all: it
deflects a fifth as many prompts at equal attainment.

Invariant: a prompt goes only where its whole chunk schedule is safe for the decode batch that runs there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from duet_engine.policy.chunks import ChunkSchedule, largest_safe_schedule
from duet_engine.policy.fleet import DecodeWorker, Prompt


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

    @property
    def step_budget_seconds(self) -> float:
        return self.beta * self.itl_seconds


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
    """The rule's chunk sizes that this worker's buffers allow; its own limit when all are larger."""
    return tuple(size for size in rule.candidates_tokens if size <= worker.chunk_tokens) or (worker.chunk_tokens,)


def local_ahead_seconds(worker: DecodeWorker, rule: DeflectionRule) -> float | None:
    """How long the prompts that already wait on this worker take beside its decode batch; None when none is safe."""
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
    return worker.local_prefill_tokens * first.seconds / candidates[0]


def local_path(prompt: Prompt, worker: DecodeWorker, rule: DeflectionRule) -> LocalPath | None:
    """The path through one worker; None when it can't take the prompt safely."""
    if not takes_prompts(worker, rule) or worker.key in prompt.excluded or not has_room(prompt, worker):
        return None
    if rule.mode is DeflectionMode.PAPER and worker.local_prefill_tokens > 0:
        return None
    ahead_seconds = local_ahead_seconds(worker, rule)
    schedule = largest_safe_schedule(
        worker.steps,
        worker.batch,
        prompt_tokens=max(prompt.tokens, 1),
        candidates_tokens=candidates_for(worker, rule),
        step_budget_seconds=rule.step_budget_seconds,
    )
    if ahead_seconds is None or schedule is None:
        return None
    return LocalPath(worker, schedule, ahead_seconds, ahead_seconds + schedule.seconds)


def best_local_path(prompt: Prompt, workers: Iterable[DecodeWorker], rule: DeflectionRule) -> LocalPath | None:
    """The soonest of all; equal ones take turns."""
    paths = [path for worker in workers if (path := local_path(prompt, worker, rule)) is not None]
    return min(paths, key=lambda path: (path.ttft_seconds, path.worker.dispatches, path.worker.key), default=None)


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
    endangered_seconds = rule.lazy_share * prompt.ttft_objective_seconds
    endangered = prompt.waited_seconds + prefill_ttft_seconds > endangered_seconds
    return endangered and local_ttft_seconds < prefill_ttft_seconds


def has_room(prompt: Prompt, worker: DecodeWorker) -> bool:
    """Whether the prompt and its expected answer fit into the worker now.

    One that is larger than the whole cache is passed on: the engine knows its limits and says so to the client.
    """
    if prompt.tokens > worker.kv_capacity_tokens:
        return worker.free_slots > 0
    needed_tokens = min(prompt.tokens + prompt.output_reserve_tokens, worker.kv_capacity_tokens)
    return worker.free_slots > 0 and worker.kv_free_tokens >= needed_tokens
