"""Who gets what while workers aren't enough, as the operator plans it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.documents import document, served
from tests.support.duet_objects import minimal, patched
from tests.support.planning import SLICES, demand

from duet_operator.api.v1alpha1 import DuetSpec, parse
from duet_operator.gate_plan import GatePlanner
from duet_operator.planner.types import Demand, Observation, PoolState
from duet_operator.signals.class_demands import ClassDemands

CLASSES = [{"name": "voice", "weight": 10}, {"name": "batch", "weight": 1}]


def spec(**changes: Any) -> DuetSpec:
    return parse(patched(minimal(), {"spec.slo.classes": CLASSES, **changes})).spec


def seen(requests_per_second: float, *, waiting: int = 5, rejected: float = 0.0, ready: int = 2) -> Observation:
    asked = replace(demand(requests_per_second), waiting_requests=waiting, rejected_requests_per_second=rejected)
    pool = PoolState(replicas=ready, ready=ready)
    return Observation(now_seconds=0.0, prefill=pool, decode=pool, demand=asked, deflection_active=True)


def by_class(voice: float, batch: float) -> dict[str, Demand]:
    return {"voice": demand(voice), "batch": demand(batch)}


async def test_nothing_is_planned_while_nobody_waits_or_there_is_enough() -> None:
    planner = GatePlanner()
    assert await planner.plan(spec(), seen(1000.0, waiting=0), SLICES, by_class(500.0, 500.0)) == ()
    assert await planner.plan(spec(), seen(0.2), SLICES, by_class(0.1, 0.1)) == ()
    without = spec(**{"spec.slo.classes": []})
    assert await planner.plan(without, seen(50.0), SLICES, {"default": demand(50.0)}) == (), "nobody to put in order"


@pytest.mark.parametrize("signs", [{"waiting": 5}, {"waiting": 0, "rejected": 1.0}])
async def test_when_demand_exceeds_capacity_the_lower_class_is_shed(signs: dict[str, Any]) -> None:
    plan = {
        each.name: each for each in await GatePlanner().plan(spec(), seen(50.0, **signs), SLICES, by_class(0.5, 50.0))
    }
    assert plan["voice"].shed_per_second == 0 and plan["voice"].admitted_per_second == pytest.approx(0.5)
    assert plan["batch"].shed_per_second > 0 and plan["batch"].admitted_per_second > 0


async def test_the_gate_stays_on_until_there_is_clearly_enough() -> None:
    planner, demands = GatePlanner(), by_class(0.5, 50.0)
    assert await planner.plan(spec(), seen(50.0), SLICES, demands)
    just_enough = 50.0
    while await GatePlanner().plan(spec(), seen(just_enough), SLICES, {"batch": demand(just_enough)}):
        just_enough -= 0.1
    nearly = {"batch": demand(just_enough)}
    assert await planner.plan(spec(), seen(just_enough, waiting=0), SLICES, nearly), "it was on"
    assert await planner.plan(spec(), seen(0.1, waiting=0), SLICES, {"batch": demand(0.1)}) == ()
    assert await planner.plan(spec(), seen(just_enough), SLICES, nearly) == (), "it is off"


@pytest.mark.parametrize("policy", ["LeastTTFT", "RoundRobin"])
async def test_without_a_gate_there_is_no_plan_for_it(policy: str) -> None:
    planner = GatePlanner()
    assert await planner.plan(spec(**{"spec.routing.policy": policy}), seen(50.0), SLICES, by_class(0.5, 50.0)) == ()


async def test_the_printed_gate_is_always_on() -> None:
    found = await GatePlanner().plan(
        spec(**{"spec.routing.policy": "GateAndRoute"}), seen(0.2, waiting=0), SLICES, by_class(0.1, 0.1)
    )
    assert {each.name for each in found} == {"voice", "batch"} and not any(each.shed_per_second for each in found)


async def test_demand_is_told_by_class() -> None:
    demands = ClassDemands(fine_seconds=60.0)
    windows = {"window_seconds": 10.0, "lengths_seconds": 10.0}
    everybody = demand(1.0)
    one = [document(served(0))]
    assert demands.see(one, everybody, **windows, now_seconds=0.0) == {"default": everybody}
    first = document(served(0, name="voice"), served(0, name="batch"))
    assert demands.see([first], everybody, **windows, now_seconds=0.0) == {}
    then = document(
        served(10, name="voice"), served(40, name="batch").model_copy(update={"waiting_requests": 7}), sequence=2
    )
    found = demands.see([then], everybody, **windows, now_seconds=10.0)
    assert {name: each.requests_per_second for name, each in found.items()} == {"voice": 1.0, "batch": 4.0}
    assert {name: each.waiting_requests for name, each in found.items()} == {"voice": 0, "batch": 7}
