"""How soon a prompt's first token comes through a pair of workers: Kairos' prefill-path estimate and its corrections.

Kairos (arXiv 2607.02043, section 4.2, equations 1 and 2) prints TTFT = W_queue + T_exec with

    W_queue = (L / chi) T_step(chi, L / 2)      L: tokens queued on the worker, chi: its chunk
    T_exec  = sum T_step(chi_j, done_j)

The printed queue treats all waiting prompts as one long prompt: each token attends to half of what everybody waits
with, and the cost grows with the square of the queue. It also counts prompts whole and knows neither the KV's transfer
nor the decode step that admits the request. `PathTerms` switches each of the four; the default is the corrected form.

Invariant: pure, seconds from now. More work ahead never makes an estimate sooner.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from duet_engine.perf.interface import StepBatch, StepTimes
from duet_engine.policy.fleet import DecodeWorker, Fleet, PrefillWorker, Prompt


class QueueForm(StrEnum):
    """What the work ahead takes: the sum of its prompts' chunks, or equation 1 with its literal context L / 2."""

    EXACT = "exact"
    PRINTED = "printed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTerms:
    """What an estimate of the prefill path counts."""

    queue: QueueForm = QueueForm.EXACT
    cached: bool = True
    """Cached tokens aren't computed; the paper leaves prefix caches out."""
    transfer: bool = True
    """The KV that is still to be sent when the last chunk is done."""
    admission: bool = True
    """The decode step that the request joins."""


CORRECTED_TERMS = PathTerms()
PRINTED_TERMS = PathTerms(queue=QueueForm.PRINTED, cached=False, transfer=False, admission=False)
"""The paper's estimate as it stands there."""


AnyWorker = TypeVar("AnyWorker", PrefillWorker, DecodeWorker)


@dataclass(frozen=True, slots=True)
class QueuedPrompt:
    """A prompt on a prefill worker, running or waiting. `done_tokens` are computed or cached."""

    tokens: int
    done_tokens: int = 0


def queue_seconds(
    steps: StepTimes,
    queued: Iterable[QueuedPrompt],
    *,
    chunk_tokens: int,
    form: QueueForm = QueueForm.EXACT,
) -> float:
    """What a worker takes for the prompts it has."""
    unfinished = [prompt for prompt in queued if prompt.done_tokens < prompt.tokens]
    if form is QueueForm.PRINTED:
        left_tokens = sum(prompt.tokens - prompt.done_tokens for prompt in unfinished)
        return printed_queue_seconds(steps, left_tokens, chunk_tokens=chunk_tokens)
    return sum(
        steps.prompt_seconds(prompt.tokens, cached_tokens=prompt.done_tokens, chunk_tokens=chunk_tokens)
        for prompt in unfinished
    )


def printed_queue_seconds(steps: StepTimes, queued_tokens: int, *, chunk_tokens: int) -> float:
    """Equation 1, with L / chi a fraction as printed."""
    step = StepBatch.prefill(chunk_tokens, queued_tokens / 2)
    return queued_tokens / chunk_tokens * steps.step_seconds(step)


def prefill_path_seconds(
    prompt: Prompt, prefill: PrefillWorker, decode: DecodeWorker, terms: PathTerms | None = None
) -> float:
    """Predicted TTFT from now through a pair: queue, own chunks, the KV's exposed transfer, one step to be admitted."""
    terms = terms or CORRECTED_TERMS
    pair_seconds = unloaded_pair_seconds(
        prompt.tokens,
        prefill.steps,
        cached_tokens=prompt.cached_tokens,
        chunk_tokens=prefill.chunk_tokens,
        terms=terms,
    )
    return (
        ahead_seconds(prefill, terms) + pair_seconds + (step_with_seconds(prompt, decode) if terms.admission else 0.0)
    )


def ahead_seconds(prefill: PrefillWorker, terms: PathTerms) -> float:
    """What this worker takes for the prompts that it has."""
    if terms.queue is QueueForm.PRINTED:
        return printed_queue_seconds(prefill.steps, prefill.queued_tokens, chunk_tokens=prefill.chunk_tokens)
    return prefill.ahead_seconds


def unloaded_pair_seconds(
    prompt_tokens: int,
    steps: StepTimes,
    *,
    cached_tokens: int = 0,
    chunk_tokens: int,
    terms: PathTerms | None = None,
) -> float:
    """From an idle prefill worker's start to the KV's arrival. `prompt_tokens` are those to compute.

    Chunks but the last are sent while others compute, so what is exposed is the last chunk's transfer, or what the
    link still lacks of the whole prompt when the worker is done.
    """
    terms = terms or CORRECTED_TERMS
    all_tokens = prompt_tokens + cached_tokens
    execution_seconds = steps.prompt_seconds(
        all_tokens, cached_tokens=cached_tokens if terms.cached else 0, chunk_tokens=chunk_tokens
    )
    if not terms.transfer:
        return execution_seconds
    last_seconds = steps.transfer_seconds(min(prompt_tokens, chunk_tokens))
    return max(execution_seconds + last_seconds, steps.transfer_seconds(all_tokens))


def unloaded_ttft_seconds(prompt_tokens: int, fleet: Fleet) -> float:
    """The TTFT of a prompt on the best idle workers of this fleet; 0 when it has none."""
    if fleet.prefill:
        kinds = kinds_of(fleet.prefill)
        return min([unloaded_pair_seconds(prompt_tokens, w.steps, chunk_tokens=w.chunk_tokens) for w in kinds])
    alone = kinds_of([worker for worker in fleet.decode if worker.prefills])
    return min([w.steps.prompt_seconds(prompt_tokens, chunk_tokens=w.chunk_tokens) for w in alone], default=0.0)


def kinds_of(workers: Iterable[AnyWorker]) -> list[AnyWorker]:
    """One worker of each kind: most of a pool's share their step times and chunks, and stand beside each other."""
    found: dict[tuple[int, int], AnyWorker] = {}
    last: AnyWorker | None = None
    for worker in workers:
        if last is None or worker.steps is not last.steps or worker.chunk_tokens != last.chunk_tokens:
            found[id(worker.steps), worker.chunk_tokens] = last = worker
    return list(found.values())


def step_with_seconds(prompt: Prompt, worker: DecodeWorker) -> float:
    """The worker's next decode step if the prompt joined it."""
    batch = worker.batch
    context_tokens = batch.context_tokens + prompt.tokens + prompt.cached_tokens
    return worker.steps.step_seconds(StepBatch.decode(batch.requests + 1, context_tokens))
