"""Other systems' autoscalers as planners of a simulation: their laws, with the windows and delays that come with them.

What each law needs to know of a worker (the tokens per second that it prefills, the batch that it decodes within ITL)
is what its users would measure; here the performance model tells, for the lengths that were seen lately.

Invariant: a peer sees what the live planner sees, and nothing is asked for outside the pools' bounds or the GPU budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from duet_engine.perf.interface import StepBatch
from duet_engine.simulator.scenario import Replicas
from duet_operator.planner.capacity import fewest
from duet_operator.planner.sizing import Limits, within_budget
from duet_operator.planner.types import Counts
from duet_operator.simulation.peer_laws import (
    PoolSignals,
    aibrix_apa,
    concurrency,
    dynamo_load,
    dynamo_throughput,
    hpa,
    keda_queue,
    role_ratio,
    wva_saturation,
)

if TYPE_CHECKING:
    from duet_engine.simulator.scenario import Observation, PoolView
    from duet_operator.planner.types import WorkerPerformance
    from duet_operator.simulation.study import Study

LENGTHS_SECONDS = 300.0
CONCURRENCY_SHARE = 0.7
"""Of the batch within ITL: the usual target utilisation of concurrency autoscalers."""
RATIO_SPREAD = 0.25
"""How far Kthena's ratio may be from the one that the lengths suggest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What came over a window."""

    requests_per_second: float
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacities:
    """What one worker of each pool does with these lengths, without room for the tail."""

    prompt_seconds: float
    batch: int
    """Decoding requests within ITL and memory."""
    step_seconds: Callable[[float], float]
    """Of a decode batch of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """All that a law may look at."""

    prefill: PoolSignals
    decode: PoolSignals
    traffic: Traffic
    capacities: Capacities
    ttft_seconds: float
    itl_seconds: float


PairLaw = Callable[[Sight], tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A law with its pace: how often it looks, over what window, and how long it waits before it takes away."""

    law: PairLaw
    sync_seconds: float = 15.0
    window_seconds: float = 60.0
    down_seconds: float = 300.0


class PeerPlanner:
    """Runs a peer. Between two looks it asks for what it asked for before."""

    def __init__(self, peer: Peer, study: Study) -> None:
        self._peer, self._study = peer, study
        self._seen: deque[Observation] = deque()
        self._asked: deque[tuple[float, Counts]] = deque()
        self._next_seconds = 0.0
        self._counts: Counts | None = None

    def plan(self, observation: Observation) -> Replicas:
        """The counts to hold."""
        now = observation.now_seconds
        self._seen.append(observation)
        while self._seen[0].now_seconds <= now - LENGTHS_SECONDS:
            self._seen.popleft()
        present = Counts(observation.prefill.replicas, observation.decode.replicas)
        if now >= self._next_seconds and any(each.arrived_input_tokens for each in self._seen):
            self._next_seconds = now + self._peer.sync_seconds
            self._counts = self._look(observation, present)
        counts = self._counts or present
        return Replicas(prefill=counts.prefill, decode=counts.decode)

    def _look(self, observation: Observation, present: Counts) -> Counts:
        """What the law asks for, the highest of the last `down_seconds` where it is less than there is."""
        wanted = self._bounded(Counts(*self._peer.law(self._sight(observation))))
        now = observation.now_seconds
        self._asked.append((now, wanted))
        while self._asked[0][0] < now - self._peer.down_seconds:
            self._asked.popleft()
        highest = Counts(
            max(counts.prefill for _, counts in self._asked), max(counts.decode for _, counts in self._asked)
        )
        return wanted.at_least(present.at_most(highest))

    def _bounded(self, counts: Counts) -> Counts:
        spec = self._study.spec
        lowest = Counts(min(max(spec.prefill.min_replicas, 1), spec.prefill.max_replicas), spec.decode.min_replicas)
        highest = Counts(spec.prefill.max_replicas, spec.decode.max_replicas)
        gpus = Counts(spec.prefill.gpus_per_replica, spec.decode.gpus_per_replica)
        limits = Limits(
            lowest=lowest.at_least(Counts(0, 1)), highest=highest, gpus=gpus, cost=gpus, max_gpus=spec.max_gpus
        )
        return within_budget(counts.at_least(limits.lowest).at_most(highest), limits)

    def _sight(self, observation: Observation) -> Sight:
        lately = self._traffic(self._peer.window_seconds)
        lengths = replace(self._traffic(LENGTHS_SECONDS), requests_per_second=lately.requests_per_second)
        capacities = self._capacities(lengths)
        prefill, decode = observation.prefill, observation.decode
        waiting = observation.waiting_requests + prefill.queued_prefill_tokens / max(lengths.input_tokens, 1.0)
        asked = lately.requests_per_second * capacities.prompt_seconds
        kv = decode.kv_used_tokens / (max(decode.ready, 1) * self._study.decode.kv_capacity_tokens)
        running = float(decode.running_requests)
        return Sight(
            prefill=_signals(prefill, utilisation=asked / max(prefill.ready, 1), waiting=waiting, inflight=waiting),
            decode=_signals(decode, utilisation=kv, waiting=max(kv - 0.9, 0.0) * running, inflight=running),
            traffic=lengths,
            capacities=capacities,
            ttft_seconds=self._study.spec.objective.ttft_seconds,
            itl_seconds=self._study.spec.objective.itl_seconds,
        )

    def _traffic(self, seconds: float) -> Traffic:
        since = self._seen[-1].now_seconds - seconds
        seen = [each for each in self._seen if each.now_seconds > since]
        inputs = [tokens for each in seen for tokens in each.arrived_input_tokens]
        outputs = [request.output_tokens for each in seen for request in each.ended if request.succeeded]
        length = sum(each.window_seconds for each in seen)
        return Traffic(
            requests_per_second=len(inputs) / length if length else 0.0,
            input_tokens=sum(inputs) / len(inputs) if inputs else 0.0,
            output_tokens=sum(outputs) / len(outputs) if outputs else 1.0,
        )

    def _capacities(self, traffic: Traffic) -> Capacities:
        performance = self._study.performance
        decode = performance.decode
        prefill = performance.prefill or decode
        assert prefill is not None and decode is not None
        context = traffic.input_tokens + traffic.output_tokens / 2
        prompt_seconds = prefill.steps.prompt_seconds(
            max(int(traffic.input_tokens), 1), chunk_tokens=prefill.chunked_prefill_tokens
        )
        step = partial(_step_seconds, decode, context)
        most = max(min(int(decode.kv_capacity_tokens / max(context, 1.0)), decode.max_running_requests), 1)
        too_many = fewest(lambda batch: step(batch) > self._study.spec.objective.itl_seconds, most=most)
        return Capacities(prompt_seconds=prompt_seconds, batch=max(too_many - 1, 1), step_seconds=step)


def _step_seconds(workers: WorkerPerformance, context: float, batch: float) -> float:
    return workers.steps.step_seconds(StepBatch.decode(batch, batch * context))


def _signals(view: PoolView, *, utilisation: float, waiting: float, inflight: float) -> PoolSignals:
    return PoolSignals(
        replicas=view.replicas,
        ready=max(view.ready, 1),
        starting=view.starting,
        utilisation=utilisation,
        waiting_requests=waiting,
        inflight_requests=inflight,
    )


# --- the laws on both pools ---


def _hpa(sight: Sight) -> tuple[int, int]:
    return hpa(sight.prefill), hpa(sight.decode)


def _keda(sight: Sight) -> tuple[int, int]:
    return keda_queue(sight.prefill), max(keda_queue(sight.decode), _concurrency(sight)[1])


def _concurrency(sight: Sight) -> tuple[int, int]:
    """A prefill worker may have as many prompts in flight as it computes within TTFT."""
    capacities = sight.capacities
    prompts = max(CONCURRENCY_SHARE * sight.ttft_seconds / capacities.prompt_seconds, 1.0)
    busy = sight.prefill.utilisation * sight.prefill.ready / CONCURRENCY_SHARE
    decode = concurrency(sight.decode, target=CONCURRENCY_SHARE * capacities.batch)
    return max(concurrency(sight.prefill, target=prompts), round(busy)), decode


def _aibrix(sight: Sight) -> tuple[int, int]:
    return aibrix_apa(sight.prefill), aibrix_apa(sight.decode)


def _wva(sight: Sight) -> tuple[int, int]:
    return wva_saturation(sight.prefill), wva_saturation(sight.decode)


def _kthena(sight: Sight) -> tuple[int, int]:
    """With the ratio that the lengths suggest, which its users would have to find."""
    capacities, traffic = sight.capacities, sight.traffic
    step_seconds = capacities.step_seconds(capacities.batch)
    ratio = capacities.prompt_seconds / (traffic.output_tokens * step_seconds / capacities.batch)
    prefill, decode = _hpa(sight)
    return role_ratio(prefill, decode, lowest=ratio * (1 - RATIO_SPREAD), highest=ratio * (1 + RATIO_SPREAD))


def _dynamo_throughput(sight: Sight) -> tuple[int, int]:
    """Means only, as there: prompts one after the other, decode at the largest batch within ITL."""
    capacities, traffic = sight.capacities, sight.traffic
    decode_rate = capacities.batch / (traffic.output_tokens * capacities.step_seconds(capacities.batch))
    rate = traffic.requests_per_second
    return (
        dynamo_throughput(rate, per_worker=1 / capacities.prompt_seconds),
        dynamo_throughput(rate, per_worker=decode_rate),
    )


def _dynamo(sight: Sight) -> tuple[int, int]:
    """Both loops: the throughput loop's counts are the floor of the load loop's."""
    capacities = sight.capacities
    queued = sight.prefill.waiting_requests / sight.prefill.ready
    batch = sight.decode.inflight_requests / sight.decode.ready
    floor = _dynamo_throughput(sight)
    return (
        max(
            floor[0],
            dynamo_load(
                sight.prefill,
                estimate=lambda factor: (queued * factor + 1) * capacities.prompt_seconds,
                objective=sight.ttft_seconds,
            ),
        ),
        max(
            floor[1],
            dynamo_load(
                sight.decode,
                estimate=lambda factor: capacities.step_seconds(max(batch * factor, 1.0)),
                objective=sight.itl_seconds,
            ),
        ),
    )


def _planner(peer: Peer) -> Callable[[Study], PeerPlanner]:
    return lambda study: PeerPlanner(peer, study)


PEERS: Mapping[str, Callable[[Study], PeerPlanner]] = {
    name: _planner(peer)
    for name, peer in {
        "hpa": Peer(law=_hpa),
        "keda-queue": Peer(law=_keda, sync_seconds=30.0, window_seconds=30.0),
        "concurrency": Peer(law=_concurrency, sync_seconds=2.0, down_seconds=60.0),
        "aibrix": Peer(law=_aibrix),
        "kthena": Peer(law=_kthena),
        "wva": Peer(law=_wva, sync_seconds=30.0),
        "dynamo-throughput": Peer(law=_dynamo_throughput, sync_seconds=180.0, window_seconds=180.0, down_seconds=0.0),
        "dynamo": Peer(law=_dynamo, sync_seconds=5.0, window_seconds=180.0, down_seconds=0.0),
    }.items()
}
