"""Several gateways with the same view: each has preferences of its own, and none flutters."""

from collections import Counter
from dataclasses import replace

import pytest
from tests.support.routing import decode, fleet, prefill, prompt

from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.deflect import DeflectionRule
from duet_engine.policy.dispatch import Dispatch, Local, Pair, dispatch
from duet_engine.policy.steadiness import THRESHOLD_SPREAD, Preferences

RULE = DeflectionRule(itl_seconds=0.05)
GATEWAYS = [f"gateway-{index}" for index in range(40)]


def test_thresholds_are_lasting_near_and_differ() -> None:
    thresholds = [Preferences(name).threshold for name in GATEWAYS]
    assert thresholds == [Preferences(name).threshold for name in GATEWAYS]
    assert all(abs(threshold - 1) <= THRESHOLD_SPREAD for threshold in thresholds)
    assert len(set(thresholds)) == len(GATEWAYS)
    assert sum(thresholds) / len(thresholds) == pytest.approx(1.0, abs=THRESHOLD_SPREAD / 3)
    assert Preferences().threshold == 1.0


def test_one_gateway_takes_turns_among_workers_that_are_as_good() -> None:
    workers = fleet([], [decode(f"d{index}", prefills=True, batch=DecodeBatch(8, 8000 + index)) for index in range(4)])
    policy = Dispatch("g")
    taken = [policy([prompt()], workers, RULE, window_seconds=0.15)[0] for _ in range(8)]
    order = [route.decode for route in taken if isinstance(route, Local)]
    assert sorted(order[:4]) == ["d0", "d1", "d2", "d3"] and order[4:] == order[:4]


def test_gateways_spread_over_workers_that_are_as_good() -> None:
    workers = fleet([], [decode(f"d{index}", prefills=True) for index in range(4)])
    taken: Counter[str] = Counter()
    for name in GATEWAYS:
        (route,) = Dispatch(name)([prompt()], workers, RULE, window_seconds=0.15)
        assert isinstance(route, Local)
        taken[route.decode] += 1
    assert len(taken) == 4 and max(taken.values()) < len(GATEWAYS) / 2


def test_no_preference_outweighs_a_real_difference() -> None:
    workers = fleet([prefill("near"), prefill("far", ahead_seconds=0.1)], [decode()])
    for name in GATEWAYS:
        (route,) = Dispatch(name)([prompt()], workers, RULE, window_seconds=0.15)
        assert isinstance(route, Pair) and route.prefill == "near"


def test_gateways_begin_to_deflect_one_after_the_other() -> None:
    """The same growing backlog: not all begin in the same step of it."""
    began: Counter[int] = Counter()
    for name in GATEWAYS:
        for step in range(60):
            busy = fleet([prefill(ahead_seconds=0.4 + step / 400)], [decode(prefills=True)])
            (route,) = Dispatch(name)([prompt()], busy, RULE, window_seconds=1.0)
            if isinstance(route, Local):
                began[step] += 1
                break
    assert sum(began.values()) == len(GATEWAYS)
    assert len(began) > 10 and max(began.values()) < len(GATEWAYS) / 2


def test_who_deflects_goes_on_until_the_danger_is_well_past() -> None:
    def kind(policy: Dispatch, ahead_seconds: float) -> type:
        busy = fleet([prefill(ahead_seconds=ahead_seconds)], [decode(prefills=True)])
        (route,) = policy([prompt()], busy, RULE, window_seconds=1.0)
        return type(route)

    policy = Dispatch()
    assert [kind(policy, ahead) for ahead in (0.42, 0.5, 0.42, 0.3, 0.42)] == [Pair, Local, Local, Pair, Pair]


def test_what_is_remembered_changes_no_decision() -> None:
    """Views that stay, views that change and workers that go and come back: as by a policy without memory."""
    policy = Dispatch()
    heavy = decode("a", prefills=True, batch=DecodeBatch(60, 60_000))
    fleets = [
        fleet([prefill(ahead_seconds=ahead)], workers)
        for ahead in (0.0, 0.9)
        for workers in (
            [heavy, decode("b", prefills=True)],
            [heavy, decode("b", prefills=True, batch=DecodeBatch(90, 90_000))],
            [decode("c", prefills=True)],
            [replace(heavy, batch=DecodeBatch(1, 1000)), decode("b", prefills=True, local_prefill_tokens=9000)],
        )
    ]
    for workers in (*fleets, *reversed(fleets)):
        routes = policy([prompt()], workers, RULE, window_seconds=1.0)
        assert routes == dispatch([prompt()], workers, RULE, window_seconds=1.0)
