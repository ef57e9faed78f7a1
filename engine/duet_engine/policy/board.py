"""The fleet during one pass over the queue: every placed prompt changes what later ones see.

Invariant: room is given away once. A worker's view is taken as it is; what was worked out of it is kept from pass to
pass for as long as the caller shows the same view, so that a decision among many workers costs little more than looking
at those that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.deflect import (
    DeflectionRule,
    LocalPace,
    LocalPath,
    best_local_path,
    deflects,
    has_room,
    in_danger,
    local_pace,
    longest_local_seconds,
    missing_tokens,
    takes_prompts,
)
from duet_engine.policy.estimates import QueueForm, ahead_seconds, step_with_seconds, unloaded_pair_seconds
from duet_engine.policy.fleet import DecodeWorker, Fleet, PrefillWorker, Prompt
from duet_engine.policy.routes import DeflectReason, Hold, HoldReason, Local, Pair, Route
from duet_engine.policy.steadiness import Preferences


class Figures:
    """What is worked out of one view of a decode worker."""

    __slots__ = ("_pace", "_pace_rule", "step_seconds", "view")

    def __init__(self, view: DecodeWorker) -> None:
        self.view = view
        self.step_seconds = view.steps.step_seconds(view.batch.moments())
        """Its next decode step as it is: what tells the least loaded of workers of a kind."""
        self._pace: LocalPace | None = None
        self._pace_rule: DeflectionRule | None = None

    def pace(self, rule: DeflectionRule) -> LocalPace | None:
        """How fast it prefills a prompt itself; None where it takes none."""
        if self._pace_rule is not rule:
            self._pace, self._pace_rule = local_pace(self.view, rule), rule
        return self._pace


class Memory:
    """Figures of the views that were last shown, by worker."""

    __slots__ = ("_figures",)

    def __init__(self) -> None:
        self._figures: dict[str, Figures] = {}

    def of(self, view: DecodeWorker) -> Figures:
        """What is known of this view."""
        figures = self._figures.get(view.key)
        if figures is None or figures.view is not view:
            figures = self._figures[view.key] = Figures(view)
        return figures

    def prepare(self, view: DecodeWorker, rule: DeflectionRule) -> None:
        """Work it out before a decision asks."""
        self.of(view).pace(rule)

    def keep(self, keys: frozenset[str]) -> None:
        """Forget workers that aren't there any more."""
        self._figures = {key: figures for key, figures in self._figures.items() if key in keys}


class Board:
    """The fleet during one pass: every placed prompt changes what later ones see."""

    def __init__(
        self,
        fleet: Fleet,
        rule: DeflectionRule,
        *,
        window_seconds: float,
        memory: Memory | None = None,
        preferences: Preferences | None = None,
        threshold_factor: float = 1.0,
        solo_first: bool = False,
    ) -> None:
        self._prefill = {worker.key: worker for worker in fleet.prefill}
        known = (memory or Memory()).of
        self._decode = {worker.key: known(worker) for worker in fleet.decode}
        self._rule = rule
        self._window_seconds = window_seconds
        self._preferences = preferences or Preferences()
        self._threshold_factor = threshold_factor
        """On the share of the objective at which the prefill path is in danger."""
        self._reserved: set[str] = set()
        """Decode workers for whose room earlier prompts wait."""
        self._solo_first = solo_first
        self._last = False
        self.endangered = False
        """Whether the prefill path of some prompt of this pass was in danger."""

    def open(self) -> bool:
        """Whether any worker can take one more prompt now. An empty fleet is open: there is a reason to give."""
        if any(worker.ahead_seconds <= self._window_seconds for worker in self._prefill.values()):
            return True
        return bool(self._open_paces()) or not self._decode

    def place(self, prompt: Prompt, *, last: bool = False) -> tuple[Route, bool]:
        """A route, and whether the pass ends with it. After the `last` one nobody looks at the board again."""
        self._last = last
        pair = self._best_pair(prompt)
        pair_ttft_seconds = pair.ttft_seconds if pair else None
        factor = self._threshold_factor
        if pair_ttft_seconds is None or in_danger(
            prompt, self._rule, prefill_ttft_seconds=pair_ttft_seconds, threshold_factor=factor
        ):
            self.endangered = pair is not None
            local = best_local_path(
                prompt,
                self._open_paces(),
                self._rule,
                preferences=self._preferences,
                within_seconds=longest_local_seconds(self._rule, pair_ttft_seconds),
            )
            if local is not None and deflects(
                prompt,
                self._rule,
                prefill_ttft_seconds=pair_ttft_seconds,
                local_ttft_seconds=local.ttft_seconds,
                threshold_factor=factor,
            ):
                return self._take_local(prompt, local, has_pair=pair is not None), False
        if pair is None:
            return self._hold_without_path(prompt)
        return self._take_pair(prompt, pair), False

    def _open_paces(self) -> list[tuple[DecodeWorker, LocalPace]]:
        """Of the workers that can take one more whole prompt now."""
        rule, window = self._rule, self._window_seconds
        found = []
        for figures in self._decode.values():
            worker = figures.view
            if worker.prefills and worker.free_slots > 0:
                pace = figures.pace(rule)
                if pace is not None and pace.ahead_seconds <= window:
                    found.append((worker, pace))
        return found

    def _best_pair(self, prompt: Prompt) -> Pair | None:
        """The prefill worker with the soonest first token; of the decode workers of its revision the least slowed."""
        terms, excluded, warm = self._rule.terms, prompt.excluded, prompt.warm
        printed = terms.queue is QueueForm.PRINTED
        admitted: dict[str, tuple[DecodeWorker, float] | None] = {}
        steps, chunk_tokens, warm_tokens, own = None, 0, 0, 0.0
        known: dict[tuple[int, int, int], float] = {}
        ranked: list[tuple[float, PrefillWorker]] = []
        for worker in self._prefill.values():
            if worker.key in excluded:
                continue
            if worker.revision not in admitted:
                admitted[worker.revision] = self._best_decode(prompt, worker.revision)
            found = admitted[worker.revision]
            if found is None:
                continue
            here = warm.get(worker.key, 0) if warm else 0
            if worker.steps is not steps or worker.chunk_tokens != chunk_tokens or here != warm_tokens:
                steps, chunk_tokens, warm_tokens = worker.steps, worker.chunk_tokens, here
                kind = id(steps), chunk_tokens, warm_tokens
                found_own = known.get(kind)
                if found_own is None:
                    found_own = known[kind] = self._own_seconds(prompt.at(worker.key), worker)
                own = found_own
            ahead = ahead_seconds(worker, terms) if printed else worker.ahead_seconds
            ranked.append((ahead + own + found[1], worker))
        if not ranked:
            return None
        ttft_seconds, best = self._preferences.best(ranked)
        decode = admitted[best.revision]
        assert decode is not None
        return Pair(best.key, decode[0].key, ttft_seconds, best.ahead_seconds)

    def _own_seconds(self, prompt: Prompt, worker: PrefillWorker) -> float:
        return unloaded_pair_seconds(
            prompt.tokens,
            worker.steps,
            cached_tokens=prompt.cached_tokens,
            chunk_tokens=worker.chunk_tokens,
            terms=self._rule.terms,
        )

    def _best_decode(self, prompt: Prompt, revision: str) -> tuple[DecodeWorker, float] | None:
        """The worker whose steps are shortest, and how long the prompt waits to be admitted there."""
        excluded, needed = prompt.excluded, prompt.tokens + prompt.output_reserve_tokens
        ranked = [
            (figures.step_seconds, worker)
            for figures in self._decode.values()
            if (worker := figures.view).revision == revision
            and not worker.unified
            and worker.key not in excluded
            and ((needed <= worker.kv_free_tokens and worker.free_slots > 0) or has_room(prompt, worker))
        ]
        if not ranked:
            return None
        if self._solo_first:
            ranked = [each for each in ranked if not each[1].local_prefill_tokens] or ranked
        _, best = self._preferences.best(ranked)
        return best, step_with_seconds(prompt, best) if self._rule.terms.admission else 0.0

    def _take_pair(self, prompt: Prompt, pair: Pair) -> Route:
        if not self._last:
            self._queue(prompt.at(pair.prefill), self._prefill[pair.prefill])
        if pair.ahead_seconds > self._window_seconds:
            return Hold(HoldReason.PREFILL_BUSY)
        self._preferences.take(pair.prefill)
        self._occupy(prompt, self._decode[pair.decode].view, local=False)
        return pair

    def _queue(self, prompt: Prompt, worker: PrefillWorker) -> None:
        """The worker as the next prompt of this pass sees it."""
        work_seconds = worker.steps.prompt_seconds(
            prompt.tokens + prompt.cached_tokens, cached_tokens=prompt.cached_tokens, chunk_tokens=worker.chunk_tokens
        )
        self._prefill[worker.key] = replace(
            worker,
            ahead_seconds=worker.ahead_seconds + work_seconds,
            queued_tokens=worker.queued_tokens + prompt.tokens,
            dispatches=worker.dispatches + 1,
        )

    def _take_local(self, prompt: Prompt, path: LocalPath, *, has_pair: bool) -> Local:
        self._occupy(prompt.at(path.worker.key), path.worker, local=True)
        if path.worker.unified:
            reason = DeflectReason.UNIFIED
        else:
            reason = DeflectReason.TTFT_ENDANGERED if has_pair else DeflectReason.NO_PREFILL_WORKER
        return Local(path.worker.key, path.schedule.chunks_tokens, reason, path.ttft_seconds, path.ahead_seconds)

    def _occupy(self, prompt: Prompt, worker: DecodeWorker, *, local: bool) -> None:
        """The worker as the next prompt of this pass sees it. A prompt joins the decode batch with its first token."""
        self._preferences.take(worker.key)
        if self._last:
            return
        occupied = replace(
            worker,
            batch=worker.batch
            if local
            else DecodeBatch(worker.batch.requests + 1, worker.batch.context_tokens + prompt.tokens),
            kv_free_tokens=worker.kv_free_tokens - prompt.tokens - prompt.output_reserve_tokens,
            free_slots=worker.free_slots - 1,
            local_prefill_tokens=worker.local_prefill_tokens + (prompt.tokens if local else 0),
            dispatches=worker.dispatches + 1,
        )
        self._decode[worker.key] = Figures(occupied)

    def _hold_without_path(self, prompt: Prompt) -> tuple[Hold, bool]:
        candidates = self._candidates(prompt)
        if not candidates:
            reason = self._reason_without_candidates(prompt)
            return Hold(reason), reason in (HoldReason.NO_DECODE_WORKER, HoldReason.NO_PREFILL_WORKER)
        if not any(has_room(prompt, worker) for worker in candidates):
            self._reserve(prompt, candidates)
            return Hold(HoldReason.DECODE_FULL), len(self._reserved) == len(self._decode)
        busy = any(worker.local_prefill_tokens > 0 for worker in candidates if takes_prompts(worker, self._rule))
        return Hold(HoldReason.LOCAL_PREFILL_BUSY if busy else HoldReason.ITL_UNSAFE), True

    def _candidates(self, prompt: Prompt) -> list[DecodeWorker]:
        """Decode workers that a path leads to, whether they have room or not."""
        revisions = {worker.revision for worker in self._prefill.values() if worker.key not in prompt.excluded}
        return [
            worker
            for figures in self._decode.values()
            if (worker := figures.view).key not in prompt.excluded
            and (takes_prompts(worker, self._rule) or (worker.revision in revisions and not worker.unified))
        ]

    def _reserve(self, prompt: Prompt, candidates: Sequence[DecodeWorker]) -> None:
        """Off the board goes the worker that lacks least: left alone it lacks less in each pass."""
        free = [worker for worker in candidates if worker.key not in self._reserved]
        nearest = min(
            free, key=lambda worker: (missing_tokens(prompt, worker), -worker.free_slots, worker.key), default=None
        )
        if nearest is not None:
            self._reserved.add(nearest.key)
            self._decode[nearest.key] = Figures(replace(nearest, free_slots=0))

    def _reason_without_candidates(self, prompt: Prompt) -> HoldReason:
        if not self._decode:
            return HoldReason.NO_DECODE_WORKER
        if self._candidates(replace(prompt, excluded=frozenset())):
            return HoldReason.TRIED_ALL
        return HoldReason.NO_PAIR if self._prefill else HoldReason.NO_PREFILL_WORKER
