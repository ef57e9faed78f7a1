"""Steps as SGLang's scheduler runs them: what was in each, and how long it took.

Invariant: a step lasts from its launch, or the end of the step before where that is later, to the moment at which its
results have been processed: with overlap two are under way, and their times still add up to the time that passed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from duet_engine.perf.interface import StepBatch
from duet_engine.protocol import StepKind
from duet_engine.step_log import Joined


@dataclass(slots=True, kw_only=True)
class Step:
    """One forward pass."""

    kind: StepKind
    started_at: float
    decode_rows: int = 0
    decode_context_tokens: int = 0
    chunk_tokens: tuple[int, ...] = ()
    """New tokens of each prompt's chunk."""
    chunk_context_tokens: tuple[int, ...] = ()
    """Tokens before each chunk, cached or computed by earlier ones."""
    prefill_tokens: int = 0
    """The chunks' new tokens in all."""
    prefill_context_tokens: int = 0
    prefill_pairs: float = 0.0
    """Pairs of tokens that attend to each other, as `perf.interface.StepBatch` counts them."""
    unfinished_chunks: int = 0
    """Chunks that aren't their prompt's last."""
    predicted_seconds: float = 0.0
    kv_used_tokens: int = 0
    queues: Mapping[str, int] = field(default_factory=dict)
    """Requests by place when it was launched; only where steps are logged."""
    joined: tuple[Joined, ...] = ()
    """Requests that are new in it; only where steps are logged."""
    ended_at: float = 0.0
    seconds: float = 0.0
    """From launch or the end of the step before to its results: these add up to the time that passed."""
    forward_seconds: float = 0.0
    """The forward pass alone where it can be told, else the same as `seconds`."""

    @property
    def output_tokens(self) -> int:
        """One for each row but those whose prompt goes on. Speculative decoding makes more."""
        return self.decode_rows + len(self.chunk_tokens) - self.unfinished_chunks

    def batch(self) -> StepBatch:
        """As the performance model takes it."""
        return StepBatch(
            self.decode_rows,
            self.decode_context_tokens,
            len(self.chunk_tokens),
            self.prefill_tokens,
            self.prefill_context_tokens,
            self.prefill_pairs,
        )


class StepTimer:
    """Pairs the begin of each step with its end."""

    def __init__(self, *, synchronous: bool) -> None:
        self._synchronous = synchronous
        """Whether a batch has been computed when its launch returns, as on a CPU."""
        self._begun: Step | None = None
        self._batch: Any = None
        self._launched: dict[int, tuple[Step, Any]] = {}
        self._last_ended_at = 0.0
        self._residents: Any = None
        self._context_tokens = 0

    @property
    def under_way(self) -> bool:
        return bool(self._launched)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that are being computed."""
        begun = 0 if self._begun is None else self._begun.prefill_tokens
        return begun + sum(step.prefill_tokens for step, _ in self._launched.values())

    def begin(self, batch: Any) -> Step | None:  # noqa: ANN401
        """Before the batch runs; None where it computes nothing."""
        if batch.forward_mode.is_decode():
            self._begun = Step(
                kind=StepKind.DECODE,
                started_at=time.monotonic(),
                decode_rows=len(batch.reqs),
                decode_context_tokens=self._context(batch),
            )
        else:
            self._begun = prompt_step(batch)
        self._batch = batch
        return self._begun

    def _context(self, batch: Any) -> int:  # noqa: ANN401
        """Length of a decode batch's contexts in all. Adding up tensors takes longer than all else here."""
        # SGLang puts another list in place when somebody leaves, and lengthens it when somebody joins.
        seen = (batch.reqs, len(batch.reqs))
        if self._residents is not None and seen[0] is self._residents[0] and seen[1] == self._residents[1]:
            self._context_tokens += seen[1]
        else:
            self._context_tokens = 0 if batch.seq_lens_cpu is None else int(batch.seq_lens_cpu.sum())
        self._residents = seen
        return self._context_tokens

    def launched(self, batch: Any) -> None:  # noqa: ANN401
        """The batch has its number: its results may come much later."""
        if self._begun is not None:
            if self._synchronous:
                self._begun.forward_seconds = time.monotonic() - self._begun.started_at
            self._launched[batch.forward_iter] = (self._begun, batch)
        self._begun = self._batch = None

    def end(self, batch: Any) -> Step | None:  # noqa: ANN401
        """Its results have been processed; None where it was no step."""
        step, _ = self._launched.pop(batch.forward_iter, (None, None))
        if step is None:
            return None
        step.ended_at = time.monotonic()
        step.seconds = step.ended_at - max(step.started_at, self._last_ended_at)
        self._last_ended_at = step.ended_at
        step.forward_seconds = step.forward_seconds or step.seconds
        return step

    def rows_outside(self, running: Any) -> int:  # noqa: ANN401
        """Requests in steps under way that the running batch doesn't hold: prompts, and all of a mixed step."""
        batches = [batch for _, batch in self._launched.values()]
        newest = self._batch if self._begun is not None else batches[-1] if batches else None
        if newest is None or newest is running or newest.forward_mode.is_decode():
            return 0
        return len(newest.reqs)


def prompt_step(batch: Any) -> Step | None:  # noqa: ANN401
    """A step with prompts in it; None where nothing is computed, as when KV has come from elsewhere."""
    mode = batch.forward_mode
    if not mode.is_extend() or batch.extend_lens is None:
        return None
    decoding = len(batch.decoding_reqs) if mode.is_mixed() and batch.decoding_reqs else 0
    prompts = len(batch.extend_lens) - decoding
    split = mode.is_split_prefill()
    chunks, contexts = tuple(batch.extend_lens[:prompts]), tuple(batch.prefix_lens[:prompts])
    pairs = 0.0
    for new, before in zip(chunks, contexts, strict=True):
        pairs += new * (before + (new + 1) / 2)
    return Step(
        kind=StepKind.SPLIT if split else StepKind.MIXED if decoding else StepKind.PREFILL,
        started_at=time.monotonic(),
        decode_rows=decoding,
        decode_context_tokens=sum(batch.prefix_lens[prompts:]) + decoding,
        chunk_tokens=chunks,
        chunk_context_tokens=contexts,
        prefill_tokens=sum(chunks),
        prefill_context_tokens=sum(contexts),
        prefill_pairs=pairs,
        unfinished_chunks=0 if batch.chunked_req is None else 1,
    )
