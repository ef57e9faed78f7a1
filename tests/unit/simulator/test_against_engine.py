"""The simulator's workers and the simulated engine's schedulers, which share no code, give every request its tokens at
the same moments."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engine_pair import EnginePair
from tests.support.small_fleets import PLAIN_LIMITS, RULE, STEPS, pairs, pool, unified

from duet_engine.policy.dispatch import DeflectReason, Local, Pair
from duet_engine.policy.fleet import Fleet, Prompt
from duet_engine.protocol import Knobs, Role
from duet_engine.simulated_engine.decode_role import DecodeScheduler
from duet_engine.simulated_engine.prefill_role import PrefillScheduler
from duet_engine.simulated_engine.request import Request as EngineRequest
from duet_engine.simulated_engine.scheduler import Limits, Scheduler, UnifiedScheduler
from duet_engine.simulator.run import Simulation, simulate
from duet_engine.simulator.scenario import Scenario, StepNoise
from duet_engine.simulator.workload import Request
from duet_engine.step_log import StepLogEntry

CAPACITY = 12_000
SIZES = replace(PLAIN_LIMITS, chunked_prefill_tokens=300, max_running_requests=20, reserved_decode_tokens=64)
LIMITS = Limits(
    kv_capacity_tokens=CAPACITY, max_running_requests=20, chunked_prefill_tokens=300, reserved_decode_tokens=64
)
KNOBS = Knobs(generation=1, itl_milliseconds=20, beta_percent=85, chunk_candidates_tokens=RULE.candidates_tokens)
UNLIMITED = 10**9
Traffic = Sequence[tuple[Request, bool]]
"""Requests and whether each is local."""


class AsTold:
    """Each prompt goes where the traffic says."""

    def __init__(self, traffic: Traffic) -> None:
        self._local = [local for _, local in traffic]

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Pair | Local]:
        if self._local.pop(0):
            return [Local("decode-0000", (), DeflectReason.TTFT_ENDANGERED, 0.0, 0.0)]
        return [Pair("prefill-0000", "decode-0000", 0.0, 0.0)]


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    """Arrivals that nearly fill a worker now and then."""
    now, traffic = 0.0, []
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.floats(0.001, 0.25))
        request = Request(now, draw(st.integers(1, 1200)), draw(st.integers(1, 120)))
        traffic.append((request, draw(st.sampled_from([False, False, True]))))
    return traffic


def engine_request(index: int, request: Request, *, local: bool = False) -> EngineRequest:
    return EngineRequest(
        rid=f"r{index}",
        prompt_tokens=request.input_tokens,
        max_new_tokens=UNLIMITED,
        output_tokens=request.output_tokens,
        deflected=local,
    )


def played(traffic: Traffic, decode: Scheduler, prefill: PrefillScheduler | None) -> EnginePair:
    pair = EnginePair(decode, prefill)
    for index, (request, local) in enumerate(traffic):
        half = None if local or prefill is None else engine_request(index, request)
        pair.submit_at(request.arrival_seconds, engine_request(index, request, local=local), half)
    pair.run()
    return pair


def assert_equal(traffic: Traffic, scenario: Scenario, pair: EnginePair) -> None:
    rows = simulate(scenario, [request for request, _ in traffic], audit=True).requests
    for index in range(len(traffic)):
        times = pair.times[f"r{index}"]
        if rows.retries[index] or f"r{index}" in pair.refused:
            assert rows.retries[index], "the engine refused what the simulated worker took"
            assert f"r{index}" in pair.refused, "the simulated worker refused what the engine took"
            continue
        assert rows.output_tokens[index] == times.tokens
        assert rows.first_token_seconds[index] == pytest.approx(times.first, abs=1e-9)
        assert rows.last_token_seconds[index] == pytest.approx(times.last, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(traffics())
def test_a_pair_with_deflected_prompts(traffic: Traffic) -> None:
    model = STEPS
    pair = played(
        traffic,
        DecodeScheduler(model=model, limits=LIMITS, knobs=KNOBS),
        PrefillScheduler(model=model, limits=LIMITS),
    )
    if pair.refused:
        return  # what the gateway does with a refused prompt isn't the engine's matter
    scenario = replace(
        pairs(dispatch=lambda: AsTold(traffic)),
        prefill=pool(Role.PREFILL, 1, kv_capacity_tokens=CAPACITY, limits=SIZES),
        decode=pool(Role.DECODE, 1, kv_capacity_tokens=CAPACITY, limits=SIZES),
    )
    assert_equal(traffic, scenario, pair)


@settings(max_examples=20, deadline=None)
@given(traffics(), st.integers(1_400, 4_000))
def test_a_unified_worker_short_of_memory(traffic: Traffic, capacity: int) -> None:
    traffic = [(request, True) for request, _ in traffic]
    limits = replace(LIMITS, kv_capacity_tokens=capacity)
    pair = played(traffic, UnifiedScheduler(model=STEPS, limits=limits), None)
    worker = {"kv_capacity_tokens": capacity, "limits": SIZES}
    scenario = unified(1, worker=worker, dispatch=lambda: ToTheOne())
    assert_equal(traffic, scenario, pair)


class ToTheOne:
    """Everything goes to the only worker at once."""

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Local]:
        return [Local("unified-0000", (), DeflectReason.UNIFIED, 0.0, 0.0)]


def test_single_steps_and_leaps_give_the_same_to_the_last_bit() -> None:
    requests = [Request(0.2 * index, 50 + 37 * (index % 11), 1 + 29 * (index % 17)) for index in range(80)]
    scenario = pairs(2, 3, noise=StepNoise(stall_probability=0.01))
    leaping = Simulation(scenario).run(requests)
    steps: list[StepLogEntry] = []
    stepping = Simulation(scenario, record=lambda _, step: steps.append(step)).run(requests)

    assert len(set(leaping.requests.decode_worker)) == 3
    assert leaping.digest() == stepping.digest()
    assert leaping.counters["events"] < stepping.counters["events"] / 2
    assert leaping.counters["steps"] == stepping.counters["steps"] == len(steps)
