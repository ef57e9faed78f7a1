"""What Duet's routing is compared with: the ordinary policies, each as its name says.

A baseline sends every prompt away at once where any worker may take it: none of them keeps prompts at the gateway or
knows of chunks that are safe. Routes are those of `dispatch`, so gateway and simulator run them in its place.

Sources: round robin and least loaded as in every load balancer (sglang-router's `round_robin` and its load policies);
least TTFT as in Mooncake's Conductor (FAST'25), the least sum of queue, prefill and transfer, with local prefill as one
more path; prefix threshold as in llm-d's `prefix-based-pd-decider` (`nonCachedTokens`) and Dynamo's conditional
disaggregation: static deflection by the prompt's uncached length.

Invariant: pairs are of one revision, workers that refused the prompt are left out, and only workers that prefill get
prompts to prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Protocol, TypeVar

from duet_engine.perf.interface import StepBatch
from duet_engine.policy.deflect import has_room
from duet_engine.policy.estimates import prefill_path_seconds
from duet_engine.policy.fleet import DecodeWorker, Fleet, PrefillWorker, Prompt
from duet_engine.policy.routes import DeflectReason, Hold, HoldReason, Local, Pair, Route

AnyWorker = TypeVar("AnyWorker", PrefillWorker, DecodeWorker)


class Baseline(StrEnum):
    """By the names that scenarios use."""

    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    LEAST_TTFT = "least-ttft"
    PREFIX_THRESHOLD = "prefix-threshold"


class RoutingPolicy(Protocol):
    """A route for one prompt, decided when it comes."""

    def route(self, prompt: Prompt, fleet: Fleet) -> Route: ...


class RoundRobin:
    """Each pool's workers in turn, whatever their load. Turns go by key, so they survive workers that come and go."""

    __slots__ = ("_last_decode", "_last_prefill")

    def __init__(self) -> None:
        self._last_prefill = ""
        self._last_decode = ""

    def route(self, prompt: Prompt, fleet: Fleet) -> Route:
        prefill_workers = _pairable(prompt, fleet)
        if not prefill_workers:
            return self._route_local(prompt, fleet)
        prefill = _next_in_turn(prefill_workers, self._last_prefill)
        decode = _next_in_turn(_peers(prompt, prefill, fleet), self._last_decode)
        self._last_prefill, self._last_decode = prefill.key, decode.key
        return _pair(prompt, prefill, decode)

    def _route_local(self, prompt: Prompt, fleet: Fleet) -> Route:
        local_workers = _local(prompt, fleet)
        if not local_workers:
            return _hold(prompt, fleet)
        worker = _next_in_turn(local_workers, self._last_decode)
        self._last_decode = worker.key
        return _whole(prompt, worker)


class LeastLoaded:
    """The prefill worker with the least work ahead, the decode worker with the fewest requests."""

    __slots__ = ()

    def route(self, prompt: Prompt, fleet: Fleet) -> Route:
        prefill_workers = _pairable(prompt, fleet)
        if not prefill_workers:
            local_workers = _local(prompt, fleet)
            return _whole(prompt, min(local_workers, key=_local_load)) if local_workers else _hold(prompt, fleet)
        prefill = min(prefill_workers, key=lambda worker: (worker.ahead_seconds, worker.dispatches, worker.key))
        return _pair(prompt, prefill, min(_peers(prompt, prefill, fleet), key=_decode_load))


class LeastTTFT:
    """Of all pairs and all workers that prefill themselves the one with the soonest predicted first token."""

    __slots__ = ()

    def route(self, prompt: Prompt, fleet: Fleet) -> Route:
        paths: list[Pair | Local] = [
            _pair(prompt, prefill, decode)
            for prefill in _pairable(prompt, fleet)
            for decode in _peers(prompt, prefill, fleet)
        ]
        paths += [_whole(prompt, worker, DeflectReason.SOONEST) for worker in _local(prompt, fleet)]
        return min(paths, key=_soonest) if paths else _hold(prompt, fleet)


class PrefixThreshold:
    """Prompts with fewer uncached tokens than the threshold are prefilled where they are decoded, whatever the load."""

    __slots__ = ("_otherwise", "_threshold_tokens")

    def __init__(self, threshold_tokens: int) -> None:
        if threshold_tokens < 0:
            raise ValueError(f"threshold_tokens: must not be negative, got {threshold_tokens}")
        self._threshold_tokens = threshold_tokens
        self._otherwise = LeastLoaded()

    def route(self, prompt: Prompt, fleet: Fleet) -> Route:
        local_workers = _local(prompt, fleet) if prompt.tokens < self._threshold_tokens else []
        if local_workers:
            return _whole(prompt, min(local_workers, key=_local_load), DeflectReason.SHORT_PROMPT)
        return self._otherwise.route(prompt, fleet)


def baseline(name: str, *, threshold_tokens: int = 512) -> RoutingPolicy:
    """A new one by name.

    Raises:
        ValueError: for a name that there isn't; the message lists those that there are.
    """
    makers: dict[str, Callable[[], RoutingPolicy]] = {
        Baseline.ROUND_ROBIN: RoundRobin,
        Baseline.LEAST_LOADED: LeastLoaded,
        Baseline.LEAST_TTFT: LeastTTFT,
        Baseline.PREFIX_THRESHOLD: lambda: PrefixThreshold(threshold_tokens),
    }
    if name not in makers:
        raise ValueError(f"unknown routing baseline {name!r}; known are {', '.join(makers)}")
    return makers[name]()


def _pairable(prompt: Prompt, fleet: Fleet) -> list[PrefillWorker]:
    """Prefill workers with somebody to decode for them."""
    return [worker for worker in fleet.prefill if worker.key not in prompt.excluded and _peers(prompt, worker, fleet)]


def _peers(prompt: Prompt, prefill: PrefillWorker, fleet: Fleet) -> list[DecodeWorker]:
    return [
        worker
        for worker in fleet.decode
        if worker.revision == prefill.revision and not worker.unified and _takes(prompt, worker)
    ]


def _local(prompt: Prompt, fleet: Fleet) -> list[DecodeWorker]:
    return [worker for worker in fleet.decode if worker.prefills and _takes(prompt, worker)]


def _takes(prompt: Prompt, worker: DecodeWorker) -> bool:
    return worker.key not in prompt.excluded and has_room(prompt, worker)


def _next_in_turn(workers: Iterable[AnyWorker], last_key: str) -> AnyWorker:
    """The first behind the last one's key, around the ring."""
    return min(workers, key=lambda worker: (worker.key <= last_key, worker.key))


def _decode_load(worker: DecodeWorker) -> tuple[float, int, str]:
    return worker.batch.requests, worker.dispatches, worker.key


def _local_load(worker: DecodeWorker) -> tuple[float, float, int, str]:
    return worker.local_prefill_tokens, *_decode_load(worker)


def _soonest(path: Pair | Local) -> tuple[float, str]:
    return path.ttft_seconds, path.decode


def _pair(prompt: Prompt, prefill: PrefillWorker, decode: DecodeWorker) -> Pair:
    return Pair(prefill.key, decode.key, prefill_path_seconds(prompt, prefill, decode), prefill.ahead_seconds)


def _whole(prompt: Prompt, worker: DecodeWorker, reason: DeflectReason = DeflectReason.NO_PREFILL_WORKER) -> Local:
    """Prefilled in the engine's own chunks beside its decode batch, as engines do that know of no safe ones."""
    decoding = worker.batch.moments()
    ahead_seconds = _mixed_seconds(worker, decoding, worker.local_prefill_tokens, cached_tokens=0)
    own_seconds = _mixed_seconds(worker, decoding, max(prompt.tokens, 1), cached_tokens=prompt.cached_tokens)
    chunks = _chunks(max(prompt.tokens, 1), worker.chunk_tokens)
    why = DeflectReason.UNIFIED if worker.unified else reason
    return Local(worker.key, tuple(chunks), why, ahead_seconds + own_seconds, ahead_seconds)


def _mixed_seconds(worker: DecodeWorker, decoding: StepBatch, tokens: int, *, cached_tokens: int) -> float:
    seconds, done_tokens = 0.0, cached_tokens
    for chunk_tokens in _chunks(tokens, worker.chunk_tokens):
        seconds += worker.steps.step_seconds(decoding.with_chunks(chunk_tokens, done_tokens))
        done_tokens += chunk_tokens
    return seconds


def _chunks(tokens: int, chunk_tokens: int) -> Sequence[int]:
    whole, rest = divmod(tokens, chunk_tokens)
    return [chunk_tokens] * whole + ([rest] if rest else [])


def _hold(prompt: Prompt, fleet: Fleet) -> Hold:
    """Nobody may take it, and why."""
    if not fleet.decode:
        return Hold(HoldReason.NO_DECODE_WORKER)
    untried = [worker for worker in fleet.decode if worker.key not in prompt.excluded]
    if not untried:
        return Hold(HoldReason.TRIED_ALL)
    if not any(has_room(prompt, worker) for worker in untried):
        return Hold(HoldReason.DECODE_FULL)
    return Hold(HoldReason.NO_PAIR if fleet.prefill else HoldReason.NO_PREFILL_WORKER)
