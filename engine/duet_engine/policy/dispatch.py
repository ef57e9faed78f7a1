"""Which waiting prompts leave now, and where to: one pass over the queue of a gateway.

Invariant: order is kept. A prompt that must wait reserves its place on the worker it waits for, so no later prompt
takes that place: a turn at a prefill worker, or all that comes free on the decode worker that lacks least for it. One
that no worker is there for, as for every later prompt, ends the pass. So no prompt starves, and a large one holds up
no more than one worker.

Prompts wait here instead of in engines: a worker is open while the work ahead of the next prompt is within a window,
and every prompt's route is decided anew in each pass until it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

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
    missing_tokens,
    takes_prompts,
)
from duet_engine.policy.estimates import prefill_path_seconds, step_with_seconds
from duet_engine.policy.fleet import DecodeWorker, Fleet, Prompt

LOOK_AHEAD_PROMPTS = 32
"""Bounds the work of one pass; later prompts are seen once earlier ones have left."""


class HoldReason(StrEnum):
    """Why a prompt waits."""

    NO_DECODE_WORKER = "no-decode-worker"
    NO_PREFILL_WORKER = "no-prefill-worker"
    DECODE_FULL = "decode-full"
    ITL_UNSAFE = "itl-unsafe"
    PREFILL_BUSY = "prefill-busy"
    LOCAL_PREFILL_BUSY = "local-prefill-busy"
    NO_PAIR = "no-pair-of-one-revision"
    TRIED_ALL = "all-workers-tried"


class DeflectReason(StrEnum):
    """Why a prompt is prefilled where it is decoded."""

    NO_PREFILL_WORKER = "no-prefill-worker"
    TTFT_ENDANGERED = "ttft-endangered"
    UNIFIED = "unified"
    SOONEST = "soonest"
    """By least TTFT."""
    SHORT_PROMPT = "short-prompt"
    """By prefix threshold."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Prefill on one worker, decode on another."""

    prefill: str
    decode: str
    ttft_seconds: float
    ahead_seconds: float


@dataclass(frozen=True, slots=True)
class Local:
    """Prefill where it is decoded."""

    decode: str
    chunks_tokens: tuple[int, ...]
    reason: DeflectReason
    ttft_seconds: float
    ahead_seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Not now."""

    reason: HoldReason


Route = Pair | Local | Hold


def dispatch(
    waiting: Sequence[Prompt], fleet: Fleet, rule: DeflectionRule, *, window_seconds: float
) -> list[Pair | Local | Hold]:
    """A route for each prompt from the head of the queue on; the list ends where the pass ended."""
    board = _Board(fleet, rule, window_seconds)
    routes: list[Route] = []
    for prompt in waiting[:LOOK_AHEAD_PROMPTS]:
        if not board.open():
            break
        route, ends_pass = board.place(prompt)
        routes.append(route)
        if ends_pass:
            break
    return routes


def hold_reason(prompt: Prompt, fleet: Fleet, rule: DeflectionRule) -> HoldReason:
    """Why a prompt that a pass didn't send away waits, for logs and error messages."""
    route, _ = _Board(fleet, rule, window_seconds=0.0).place(prompt)
    return route.reason if isinstance(route, Hold) else HoldReason.PREFILL_BUSY


class _Board:
    """The fleet during one pass: every placed prompt changes what later ones see."""

    def __init__(self, fleet: Fleet, rule: DeflectionRule, window_seconds: float) -> None:
        self._prefill = {worker.key: worker for worker in fleet.prefill}
        self._decode = {worker.key: worker for worker in fleet.decode}
        self._rule = rule
        self._window_seconds = window_seconds
        self._reserved: set[str] = set()
        """Decode workers for whose room earlier prompts wait."""
        self._paces: dict[str, LocalPace] = {}
        """Of the workers that can take one more whole prompt now, as far as they aren't stale."""
        self._stale_paces = set(self._decode)
        """Workers whose pace nobody has asked for since they changed: most prompts need none."""

    def open(self) -> bool:
        """Whether any worker can take one more prompt now. An empty fleet is open: there is a reason to give."""
        if any(worker.ahead_seconds <= self._window_seconds for worker in self._prefill.values()):
            return True
        return bool(self._open_paces()) or not self._decode

    def place(self, prompt: Prompt) -> tuple[Route, bool]:
        """A route, and whether the pass ends with it."""
        pair = self._best_pair(prompt)
        pair_ttft_seconds = pair.ttft_seconds if pair else None
        if pair_ttft_seconds is None or in_danger(prompt, self._rule, prefill_ttft_seconds=pair_ttft_seconds):
            open_workers = ((self._decode[key], pace) for key, pace in self._open_paces().items())
            local = best_local_path(prompt, open_workers, self._rule)
            if local is not None and deflects(
                prompt, self._rule, prefill_ttft_seconds=pair_ttft_seconds, local_ttft_seconds=local.ttft_seconds
            ):
                return self._take_local(prompt, local, has_pair=pair is not None), False
        if pair is None:
            return self._hold_without_path(prompt)
        return self._take_pair(prompt, pair), False

    def _open_paces(self) -> dict[str, LocalPace]:
        for key in self._stale_paces:
            pace = local_pace(self._decode[key], self._rule)
            if pace is not None and pace.ahead_seconds <= self._window_seconds:
                self._paces[key] = pace
            else:
                self._paces.pop(key, None)
        self._stale_paces.clear()
        return self._paces

    def _best_pair(self, prompt: Prompt) -> Pair | None:
        """The prefill worker with the soonest first token; of the decode workers of its revision the least slowed."""
        best: tuple[tuple[float, int, str], Pair] | None = None
        decode_by_revision: dict[str, DecodeWorker | None] = {}
        for worker in self._prefill.values():
            if worker.key in prompt.excluded:
                continue
            if worker.revision not in decode_by_revision:
                decode_by_revision[worker.revision] = self._best_decode(prompt, worker.revision)
            decode = decode_by_revision[worker.revision]
            if decode is None:
                continue
            ttft_seconds = prefill_path_seconds(prompt, worker, decode, self._rule.terms)
            rank = (ttft_seconds, worker.dispatches, worker.key)
            if best is None or rank < best[0]:
                best = rank, Pair(worker.key, decode.key, ttft_seconds, worker.ahead_seconds)
        return best[1] if best else None

    def _best_decode(self, prompt: Prompt, revision: str) -> DecodeWorker | None:
        fitting = [
            worker
            for worker in self._decode.values()
            if worker.revision == revision
            and not worker.unified
            and worker.key not in prompt.excluded
            and has_room(prompt, worker)
        ]
        return min(
            fitting,
            key=lambda worker: (
                step_with_seconds(prompt, worker),
                -worker.kv_free_tokens,
                worker.dispatches,
                worker.key,
            ),
            default=None,
        )

    def _take_pair(self, prompt: Prompt, pair: Pair) -> Route:
        worker = self._prefill[pair.prefill]
        work_seconds = worker.steps.prompt_seconds(
            prompt.tokens + prompt.cached_tokens, cached_tokens=prompt.cached_tokens, chunk_tokens=worker.chunk_tokens
        )
        self._prefill[pair.prefill] = replace(
            worker,
            ahead_seconds=worker.ahead_seconds + work_seconds,
            queued_tokens=worker.queued_tokens + prompt.tokens,
            dispatches=worker.dispatches + 1,
        )
        if pair.ahead_seconds > self._window_seconds:
            return Hold(HoldReason.PREFILL_BUSY)
        self._occupy(prompt, self._decode[pair.decode], local=False)
        return pair

    def _take_local(self, prompt: Prompt, path: LocalPath, *, has_pair: bool) -> Local:
        self._occupy(prompt, path.worker, local=True)
        if path.worker.unified:
            reason = DeflectReason.UNIFIED
        else:
            reason = DeflectReason.TTFT_ENDANGERED if has_pair else DeflectReason.NO_PREFILL_WORKER
        return Local(path.worker.key, path.schedule.chunks_tokens, reason, path.ttft_seconds, path.ahead_seconds)

    def _occupy(self, prompt: Prompt, worker: DecodeWorker, *, local: bool) -> None:
        """The worker as the next prompt of this pass sees it. A prompt joins the decode batch with its first token."""
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
        self._decode[worker.key] = occupied
        self._stale_paces.add(worker.key)

    def _hold_without_path(self, prompt: Prompt) -> tuple[Hold, bool]:
        decode = self._decode.values()
        candidates = self._candidates(prompt)
        if not candidates:
            reason = self._reason_without_candidates(prompt)
            return Hold(reason), reason in (HoldReason.NO_DECODE_WORKER, HoldReason.NO_PREFILL_WORKER)
        if not any(has_room(prompt, worker) for worker in candidates):
            self._reserve(prompt, candidates)
            return Hold(HoldReason.DECODE_FULL), len(self._reserved) == len(decode)
        busy = any(worker.local_prefill_tokens > 0 for worker in candidates if takes_prompts(worker, self._rule))
        return Hold(HoldReason.LOCAL_PREFILL_BUSY if busy else HoldReason.ITL_UNSAFE), True

    def _candidates(self, prompt: Prompt) -> list[DecodeWorker]:
        """Decode workers that a path leads to, whether they have room or not."""
        revisions = {worker.revision for worker in self._prefill.values() if worker.key not in prompt.excluded}
        return [
            worker
            for worker in self._decode.values()
            if worker.key not in prompt.excluded
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
            self._decode[nearest.key] = replace(nearest, free_slots=0)
            self._paces.pop(nearest.key, None)
            self._stale_paces.discard(nearest.key)

    def _reason_without_candidates(self, prompt: Prompt) -> HoldReason:
        if not self._decode:
            return HoldReason.NO_DECODE_WORKER
        if self._candidates(replace(prompt, excluded=frozenset())):
            return HoldReason.TRIED_ALL
        return HoldReason.NO_PAIR if self._prefill else HoldReason.NO_PREFILL_WORKER
