"""One pass over a queue: order, windows, revisions, and nobody starves."""

from dataclasses import fields, replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import routing
from tests.support.routing import fleet, prompt
from tests.support.step_times import SLOW, LinearSteps

from duet_engine.perf.interface import StepBatch
from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.deflect import DeflectionMode, DeflectionRule
from duet_engine.policy.dispatch import (
    DeflectReason,
    Dispatch,
    Hold,
    HoldReason,
    Local,
    Pair,
    dispatch,
    hold_reason,
)
from duet_engine.policy.estimates import prefill_path_seconds, unloaded_ttft_seconds
from duet_engine.policy.fleet import Fleet, Prompt

RULE = DeflectionRule(itl_seconds=0.1)
OFF = replace(RULE, mode=DeflectionMode.OFF)
WINDOW = 0.15
prefill = partial(routing.prefill, steps=SLOW)
decode = partial(routing.decode, steps=SLOW, prefills=True)


def run(prompts: list[Prompt], workers: Fleet, rule: DeflectionRule = RULE) -> list[Pair | Local | Hold]:
    return dispatch(prompts, workers, rule, window_seconds=WINDOW)


def test_what_a_view_was_prepared_for_no_decision_asks_again() -> None:
    asked: list[int] = []

    class Counted(LinearSteps):
        def step_seconds(self, batch: StepBatch, *, sm_share: float = 1.0) -> float:
            asked.append(1)
            return super().step_seconds(batch, sm_share=sm_share)

    steps = Counted(**{field.name: getattr(SLOW, field.name) for field in fields(SLOW)})
    views = [decode(f"d{index}", steps=steps, batch=DecodeBatch(4, 4000)) for index in range(20)]
    workers = fleet([prefill("p0", steps=SLOW)], views)
    late = replace(prompt(300), waited_seconds=10.0)

    def steps_asked(*, prepared: bool) -> int:
        one = Dispatch("g")
        for view in views if prepared else ():
            one.prepare(view, RULE)
        asked.clear()
        one([late], workers, RULE, window_seconds=WINDOW)
        return len(asked)

    assert steps_asked(prepared=True) <= 10 < 20 < steps_asked(prepared=False)


def test_the_least_loaded_pair_is_taken() -> None:
    workers = fleet(
        [prefill("p0", ahead_seconds=0.1), prefill("p1", ahead_seconds=0.02)],
        [decode("d0", batch=DecodeBatch(20, 20_000)), decode("d1", batch=DecodeBatch(3, 3_000))],
    )
    (route,) = run([prompt()], workers)
    assert isinstance(route, Pair)
    assert (route.prefill, route.decode) == ("p1", "d1")
    assert route.ttft_seconds == pytest.approx(prefill_path_seconds(prompt(), workers.prefill[1], workers.decode[1]))


def test_equal_workers_take_turns() -> None:
    workers = fleet([prefill("p0", dispatches=5), prefill("p1", dispatches=4)], [decode("d0"), decode("d1")])
    routes = run([prompt(10), prompt(10)], workers)
    assert [route.prefill for route in routes if isinstance(route, Pair)] == ["p1", "p0"]
    assert [route.decode for route in routes if isinstance(route, Pair)] == ["d0", "d1"]


def test_only_workers_of_one_revision_are_paired() -> None:
    workers = fleet(
        [prefill("old", revision="1"), prefill("new", ahead_seconds=0.1, revision="2")], [decode("d", revision="2")]
    )
    (route,) = run([prompt()], workers)
    assert isinstance(route, Pair)
    assert route.prefill == "new"


def test_the_window_keeps_prompts_at_the_gateway() -> None:
    routes = run([prompt() for _ in range(4)], fleet([prefill("p")], [decode("d")]), OFF)
    assert [type(route) for route in routes] == [Pair, Pair]


def test_a_prompt_in_danger_goes_to_a_decode_worker() -> None:
    routes = run([prompt() for _ in range(8)], fleet([prefill("p")], [decode("d0"), decode("d1")]))
    deflected = [route for route in routes if isinstance(route, Local)]
    assert deflected
    assert {route.reason for route in deflected} == {DeflectReason.TTFT_ENDANGERED}
    assert [type(route) for route in routes[:2]] == [Pair, Pair], "the first ones were in no danger"


def test_without_prefill_workers_everything_is_deflected() -> None:
    routes = run([prompt(), prompt()], fleet([], [decode("d0"), decode("d1")]))
    assert [route.decode for route in routes if isinstance(route, Local)] == ["d0", "d1"]
    assert all(isinstance(route, Local) and route.reason is DeflectReason.NO_PREFILL_WORKER for route in routes)


def test_a_unified_worker_takes_prompts_of_its_own() -> None:
    (route,) = run([prompt()], fleet([], [decode("u", unified=True)]), OFF)
    assert isinstance(route, Local)
    assert route.reason is DeflectReason.UNIFIED


def test_a_prompt_that_waits_for_decode_room_lets_none_pass() -> None:
    workers = fleet([prefill("p")], [decode("d", kv_free_tokens=5000)])
    routes = run([prompt(6000), prompt(10)], workers)
    assert routes == [Hold(HoldReason.DECODE_FULL)]


def test_a_prompt_that_waits_for_decode_room_holds_up_one_worker_only() -> None:
    workers = fleet([prefill("p")], [decode("near", kv_free_tokens=5000), decode("far", kv_free_tokens=2000)])
    routes = run([prompt(6000), prompt(1500, output_reserve_tokens=0)], workers)
    assert routes[0] == Hold(HoldReason.DECODE_FULL)
    assert isinstance(routes[1], Pair) and routes[1].decode == "far"


@settings(deadline=None)
@given(st.integers(3_000, 10_000), st.lists(st.integers(100, 2_000), min_size=1, max_size=5), st.integers(1, 3))
def test_a_large_prompt_leaves_however_many_small_ones_follow(
    large_tokens: int, small_tokens: list[int], workers: int
) -> None:
    """Each pass the oldest request of each worker ends, and small ones wait to take its room."""
    capacity = 10_000
    running: dict[str, list[int]] = {f"d{index}": [500] * 20 for index in range(workers)}
    for _ in range(25 * workers):
        fleet_now = fleet(
            [prefill("p")],
            [
                decode(key, kv_capacity_tokens=capacity, kv_free_tokens=capacity - sum(held), prefills=False)
                for key, held in running.items()
            ],
        )
        queue = [prompt(large_tokens), *(prompt(tokens) for tokens in small_tokens * 3)]
        routes = run(queue, fleet_now)
        if routes and isinstance(routes[0], Pair):
            return
        for waiting, route in zip(queue, routes, strict=False):
            if isinstance(route, Pair):
                running[route.decode].append(waiting.tokens)
        for held in running.values():
            del held[:1]
    pytest.fail("the large prompt never left")


def test_a_prompt_that_tried_all_workers_does_not_hold_up_others() -> None:
    workers = fleet([prefill("p")], [decode("d")])
    routes = run([prompt(excluded=frozenset({"d"})), prompt()], workers)
    assert routes[0] == Hold(HoldReason.TRIED_ALL)
    assert isinstance(routes[1], Pair)


def test_nor_does_it_when_all_prefill_where_they_decode() -> None:
    routes = run([prompt(excluded=frozenset({"d"})), prompt()], fleet([], [decode("d")]))
    assert routes[0] == Hold(HoldReason.TRIED_ALL)
    assert isinstance(routes[1], Local)


@pytest.mark.parametrize(
    ("workers", "rule", "reason"),
    [
        (fleet([], []), RULE, HoldReason.NO_DECODE_WORKER),
        (fleet([prefill("p")], []), RULE, HoldReason.NO_DECODE_WORKER),
        (fleet([], [decode("d")]), OFF, HoldReason.NO_PREFILL_WORKER),
        (fleet([], [decode("d", prefills=False)]), RULE, HoldReason.NO_PREFILL_WORKER),
        (fleet([prefill("p")], [decode("d", free_slots=0)]), RULE, HoldReason.DECODE_FULL),
        (fleet([], [decode("d", batch=DecodeBatch(900, 90_000))]), RULE, HoldReason.ITL_UNSAFE),
        (
            fleet([], [decode("d", local_prefill_tokens=5)]),
            replace(RULE, mode=DeflectionMode.PAPER),
            HoldReason.LOCAL_PREFILL_BUSY,
        ),
        (fleet([prefill("p", revision="1")], [decode("d", revision="2")]), OFF, HoldReason.NO_PAIR),
        (
            fleet([prefill("p", revision="1")], [decode("d", free_slots=0, revision="1"), decode("e", revision="2")]),
            OFF,
            HoldReason.DECODE_FULL,
        ),
        (fleet([prefill("p", ahead_seconds=9.0)], [decode("d", prefills=False)]), RULE, HoldReason.PREFILL_BUSY),
    ],
)
def test_a_hold_says_why(workers: Fleet, rule: DeflectionRule, reason: HoldReason) -> None:
    assert hold_reason(prompt(), workers, rule) is reason


def test_the_unloaded_ttft_is_that_of_the_idle_pool() -> None:
    workers = fleet([prefill("p", ahead_seconds=3.0)], [decode("d")])
    assert unloaded_ttft_seconds(1000, workers) == pytest.approx(
        SLOW.prompt_seconds(1000, chunk_tokens=2048) + SLOW.transfer_seconds(1000)
    )
    assert unloaded_ttft_seconds(1000, fleet([], [decode("d")])) == pytest.approx(
        SLOW.prompt_seconds(1000, chunk_tokens=2048)
    ), "nothing to transfer"
    assert unloaded_ttft_seconds(1000, fleet([], [])) == 0.0


prompts = st.lists(
    st.builds(
        prompt, tokens=st.integers(1, 9000), waited_seconds=st.floats(0, 3), output_reserve_tokens=st.integers(0, 512)
    ),
    max_size=12,
)
fleets = st.builds(
    fleet,
    st.lists(st.builds(prefill, st.uuids().map(str), ahead_seconds=st.floats(0, 1)), max_size=3),
    st.lists(
        st.builds(
            decode,
            st.uuids().map(str),
            batch=st.builds(DecodeBatch, requests=st.integers(0, 200), context_tokens=st.integers(0, 90_000)),
            kv_free_tokens=st.integers(0, 100_000),
            free_slots=st.integers(0, 4),
            prefills=st.booleans(),
            local_prefill_tokens=st.integers(0, 4000),
        ),
        max_size=3,
    ),
)
rules = st.builds(DeflectionRule, itl_seconds=st.floats(0.01, 0.3), mode=st.sampled_from(DeflectionMode))


@settings(deadline=None)
@given(prompts, fleets, rules)
def test_room_is_given_away_once(queue: list[Prompt], workers: Fleet, rule: DeflectionRule) -> None:
    routes = run(queue, workers, rule)
    assert len(routes) <= len(queue)
    for worker in workers.decode:
        taken = [p for p, r in zip(queue, routes, strict=False) if not isinstance(r, Hold) and r.decode == worker.key]
        assert len(taken) <= worker.free_slots
        fitting = [p for p in taken if p.tokens + p.output_reserve_tokens <= worker.kv_capacity_tokens]
        assert sum(p.tokens + p.output_reserve_tokens for p in fitting) <= worker.kv_free_tokens
        if any(isinstance(r, Local) and r.decode == worker.key for r in routes):
            assert worker.prefills


@settings(deadline=None)
@given(prompts, fleets, rules)
def test_windows_hold(queue: list[Prompt], workers: Fleet, rule: DeflectionRule) -> None:
    for route in run(queue, workers, rule):
        if not isinstance(route, Hold):
            assert route.ahead_seconds <= WINDOW


@settings(deadline=None)
@given(prompts.filter(bool), fleets, rules)
def test_a_queue_over_an_idle_fleet_with_room_moves(queue: list[Prompt], workers: Fleet, rule: DeflectionRule) -> None:
    """No starvation: the head leaves as soon as any path for it is free."""
    idle = fleet(
        [replace(worker, ahead_seconds=0.0) for worker in workers.prefill],
        [
            replace(worker, batch=DecodeBatch(0, 0), kv_free_tokens=100_000, free_slots=4, local_prefill_tokens=0)
            for worker in workers.decode
        ],
    )
    has_path = bool(idle.decode) and (
        bool(idle.prefill) or (rule.mode is not DeflectionMode.OFF and any(worker.prefills for worker in idle.decode))
    )
    moved = any(not isinstance(route, Hold) for route in run(queue, idle, rule)[:1])
    assert moved is has_path


def test_a_prompt_goes_where_its_beginning_is_when_that_is_faster() -> None:
    """A warm worker with little ahead wins, with much ahead it doesn't."""
    cold, warm = prefill("cold"), prefill("warm", ahead_seconds=0.1)
    turn = prompt(2000, warm={"warm": 1800})
    (route,) = run([turn], fleet([cold, warm], [decode("d", prefills=False)]), OFF)
    assert isinstance(route, Pair) and route.prefill == "warm"
    assert route.ttft_seconds == pytest.approx(prefill_path_seconds(turn.at("warm"), warm, decode("d")), rel=1e-6)
    later = replace(warm, ahead_seconds=0.4)
    (route,) = dispatch([turn], fleet([cold, later], [decode("d")]), OFF, window_seconds=1.0)
    assert isinstance(route, Pair) and route.prefill == "cold"


def test_a_warm_decode_worker_prefills_less() -> None:
    turn = prompt(2000, warm={"d1": 1999})
    (route,) = run([turn], fleet([], [decode("d0"), decode("d1")]))
    assert isinstance(route, Local) and (route.decode, sum(route.chunks_tokens)) == ("d1", 1)
