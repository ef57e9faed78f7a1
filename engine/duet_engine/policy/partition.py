"""Whether a step runs on all SMs or split, and how: DuetServe's partition optimizer (arXiv 2511.04791, section 4).

A batch whose mixed step is predicted to keep the budget runs as it is. Otherwise prefill and decode run side by side on
S_p and S_d SMs, k decode steps inside one prefill, with

    max (k T_decode + T_prefill) / max(k t_d(S_d), t_p(S_p))    S_p + S_d = S, S_d in steps of a TPC

The printed constraint is t_d(S_d) <= tau alone. It leaves out that residents wait for the prefill's end after their k
steps and that the new request joins then: the gap there is (t_p - k t_d)+ + t_join + t_d, and it is what the corrected
constraint, the default, holds within beta·tau - o. It also bounds the window max(k t_d, t_p), in which arrivals and
aborts aren't seen.

Invariant: no split is chosen that breaks the constraint, and one is chosen where any exists. Of equal ones it has the
fewest decode SMs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from duet_engine.perf.interface import StepBatch, StepTimes

if TYPE_CHECKING:
    from duet_engine.perf.interface import FloatArray

ROUNDING = 1e-9
"""Relative: a bound met but for the last bits of a float is met."""


class GapForm(StrEnum):
    """Which gaps between tokens a split must hold: all, or only those within the look-ahead as printed."""

    CORRECTED = "corrected"
    PRINTED = "printed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """What a split must hold."""

    step_budget_seconds: float
    """beta·tau - o: see `chunks.step_budget_seconds`."""
    most_look_ahead: int = 8
    longest_window_seconds: float = 0.1
    join_seconds: float = 0.0
    """From the end of both to the start of the next step."""
    form: GapForm = GapForm.CORRECTED
    believe_assumed: bool = False
    """Whether step times at a share of the SMs count that nothing measured stands behind: in a simulated run they are
    the truth, in a live one no gain."""

    def __post_init__(self) -> None:
        if self.most_look_ahead < 1:
            raise ValueError(f"most_look_ahead: must be at least 1, got {self.most_look_ahead}")

    def gap_seconds(self, decode_seconds: float, prefill_seconds: float, look_ahead: int) -> float:
        """The longest gap between two tokens of a resident."""
        if self.form is GapForm.PRINTED:
            return decode_seconds
        waiting_seconds = max(0.0, prefill_seconds - look_ahead * decode_seconds)
        return waiting_seconds + self.join_seconds + decode_seconds

    def holds(self, decode_seconds: float, prefill_seconds: float, look_ahead: int) -> bool:
        """Whether this split keeps the budget and, in the corrected form, the window."""
        gap_seconds = self.gap_seconds(decode_seconds, prefill_seconds, look_ahead)
        window_seconds = max(look_ahead * decode_seconds, prefill_seconds)
        return gap_seconds <= self.step_budget_seconds * (1 + ROUNDING) and (
            self.form is GapForm.PRINTED or window_seconds <= self.longest_window_seconds * (1 + ROUNDING)
        )


@dataclass(frozen=True, slots=True)
class Mixed:
    """The batch as it is, on all SMs."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Both parts at once on disjoint SMs."""

    decode_sms: int
    prefill_sms: int
    look_ahead: int
    decode_seconds: float
    """One of the `look_ahead` decode steps."""
    prefill_seconds: float
    tokens_per_second: float


class Partitioner:
    """Chooses for one worker. It holds the shares of the SMs to try, nothing of any batch."""

    __slots__ = ("_decode_shares", "_decode_sms", "_prefill_shares", "_steps")

    def __init__(self, steps: StepTimes) -> None:
        self._steps = steps
        self._decode_sms = np.arange(steps.sm_granularity, steps.sms, steps.sm_granularity)
        self._decode_shares = self._decode_sms / steps.sms
        self._prefill_shares = 1.0 - self._decode_shares

    def choose(self, batch: StepBatch, rule: SplitRule) -> Mixed | Split | None:
        """How this batch runs; None when no way is safe: the caller takes a smaller chunk, or decodes alone.

        A batch without either part has nothing to split, and without residents no gap to hold.
        """
        mixed_seconds = self._steps.step_seconds(batch)
        one_part = batch.decode_requests <= 0.0 or batch.prefill_tokens <= 0.0
        if one_part or mixed_seconds <= rule.step_budget_seconds * (1 + ROUNDING):
            return Mixed(mixed_seconds)
        return self.split(batch, rule)

    def largest(
        self,
        decoding: StepBatch,
        rule: SplitRule,
        *,
        candidates_tokens: Iterable[int],
        prompt_tokens: int,
        context_tokens: int = 0,
    ) -> tuple[int, Mixed | Split] | None:
        """The first of the chunk sizes, largest first, that is safe mixed or split, and how it runs; None if none is.

        `prompt_tokens` are left to compute behind `context_tokens`; a chunk is no longer than that.
        """
        for size in candidates_tokens:
            chunk_tokens = min(size, prompt_tokens)
            choice = self.choose(decoding.with_chunks(chunk_tokens, context_tokens), rule)
            if choice is not None:
                return chunk_tokens, choice
        return None

    def split(self, batch: StepBatch, rule: SplitRule) -> Split | None:
        """The best split of a batch with both parts."""
        decoding, prefilling = batch.decode_part, batch.prefill_part
        if self._decode_sms.size == 0 or not (rule.believe_assumed or self._known(decoding, prefilling)):
            return None
        decode_seconds = self._steps.step_seconds_over(decoding, self._decode_shares)
        prefill_seconds = self._steps.step_seconds_over(prefilling, self._prefill_shares)
        best = best_split(
            decode_seconds,
            prefill_seconds,
            decode_tokens=batch.decode_requests,
            prefill_tokens=batch.prefill_tokens,
            rule=rule,
        )
        if best is None:
            return None
        index, look_ahead, tokens_per_second = best
        decode_sms = int(self._decode_sms[index])
        return Split(
            decode_sms=decode_sms,
            prefill_sms=self._steps.sms - decode_sms,
            look_ahead=look_ahead,
            decode_seconds=float(decode_seconds[index]),
            prefill_seconds=float(prefill_seconds[index]),
            tokens_per_second=tokens_per_second,
        )

    def _known(self, decoding: StepBatch, prefilling: StepBatch) -> bool:
        half = 0.5
        return (
            self._steps.step(decoding, sm_share=half).basis.known
            and self._steps.step(prefilling, sm_share=half).basis.known
        )


def best_split(
    decode_seconds: FloatArray,
    prefill_seconds: FloatArray,
    *,
    decode_tokens: float,
    prefill_tokens: float,
    rule: SplitRule,
) -> tuple[int, int, float] | None:
    """The index, look-ahead and tokens per second of the best candidate; None when none is allowed.

    For one candidate the throughput rises with k until k t_d reaches t_p and falls after it, so only the two whole
    numbers around t_p / t_d can be best, moved into the range that the constraint leaves.
    """
    least, most = _look_ahead_range(decode_seconds, prefill_seconds, rule)
    allowed = np.flatnonzero(least <= most)
    if allowed.size == 0:
        return None
    decode, prefill, least, most = decode_seconds[allowed], prefill_seconds[allowed], least[allowed], most[allowed]
    below = np.floor(prefill / decode)
    best: tuple[int, int, float] | None = None
    for turn in (below, below + 1.0):
        look_ahead = np.minimum(np.maximum(turn, least), most)
        rates = (look_ahead * decode_tokens + prefill_tokens) / np.maximum(look_ahead * decode, prefill)
        place = int(rates.argmax())
        if best is None or rates[place] > best[2]:
            best = int(allowed[place]), int(look_ahead[place]), float(rates[place])
    return best


def _look_ahead_range(
    decode_seconds: FloatArray, prefill_seconds: FloatArray, rule: SplitRule
) -> tuple[FloatArray, FloatArray]:
    """The least and the most k that each candidate may run; where the least is more, it may run none."""
    budget_seconds = rule.step_budget_seconds * (1 + ROUNDING)
    if rule.form is GapForm.PRINTED:
        return np.where(decode_seconds <= budget_seconds, 1.0, math.inf), np.full_like(
            decode_seconds, rule.most_look_ahead
        )
    window_seconds = rule.longest_window_seconds * (1 + ROUNDING)
    joined_seconds = decode_seconds + rule.join_seconds
    least = np.maximum(1.0, np.ceil((prefill_seconds + joined_seconds - budget_seconds) / decode_seconds))
    least[(joined_seconds > budget_seconds) | (prefill_seconds > window_seconds)] = math.inf
    return least, np.minimum(rule.most_look_ahead, np.floor(window_seconds / decode_seconds))
