"""The gate of one gateway: which plan it goes by, what it does to the queue, and what bounds the queue."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from time import monotonic
from typing import Any

import pytest
from tests.support import documents
from tests.support.fleet import eventually

from duet_engine.gateway.demand import Demand
from duet_engine.gateway.discovery import Member
from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.gate import Gate
from duet_engine.gateway.live_settings import LiveSettings, live_settings
from duet_engine.gateway.plan import PlanHolder
from duet_engine.gateway.record import RequestRecord
from duet_engine.gateway.requests import COMPLETIONS, ClientRequest, parse
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.settings import Limits
from duet_engine.gateway.workers import Workers
from duet_engine.policy.class_gate import ClassGate
from duet_engine.protocol import ClassPlan, Role, RoutingPlan, WorkerInfo, WorkerState
from duet_engine.slo import Objective

CLASSES = [{"name": "voice", "weight": 10}, {"name": "batch", "weight": 1}]
PLANS = (
    ClassPlan(name="voice", prefill_occupancy=1.0, solo_occupancy=50.0, admitted_per_second=8.0),
    ClassPlan(name="batch", prefill_occupancy=0.5, admitted_per_second=4.0, shed_per_second=9.0),
)


def live(policy: str = "Auto", **hold: int) -> LiveSettings:
    spec: dict[str, Any] = {
        "slo": {"ttftMilliseconds": 1000, "itlMilliseconds": 50, "classes": CLASSES},
        "routing": {"policy": policy},
    }
    return live_settings({**spec, "gateway": {"hold": hold}} if hold else spec, generation=1)


def told(*, saturated: bool = True, share: float = 1.0) -> PlanHolder:
    holder = PlanHolder()
    plan = RoutingPlan(lease_seconds=60.0, saturated=saturated, classes=PLANS, dispatch_share=share)
    holder.take(plan, monotonic())
    return holder


def gate_of(plan: PlanHolder, settings: LiveSettings, **parts: Any) -> Gate:
    return Gate(plan=plan, live=lambda: settings, demand=Demand(), workers=Workers("g"), **parts)


def asked(class_name: str, tokens: int = 100) -> ClientRequest:
    body = json.dumps({"prompt": [1] * tokens}).encode()
    return parse(COMPLETIONS, body, model_names=(), class_name=class_name)


def busy_fleet() -> Workers:
    """One prefill worker that takes one short prompt at a time, and a decode worker that takes no prompt."""
    workers = Workers("g")
    roles = {"p": Role.PREFILL, "d": Role.DECODE}
    come, _ = workers.update(
        [Member(uid=name, name=name, url="http://127.0.0.1:1", role=role) for name, role in roles.items()]
    )
    for worker in come:
        role = worker.member.role
        worker.describe(WorkerInfo(worker=worker.name, role=role, profile=documents.profile(role=role)))
        state = WorkerState(worker=worker.name, role=role, ready=True, kv_capacity_tokens=100_000)
        worker.heard(state, monotonic())
    return workers


# --- which plan ---


@pytest.mark.parametrize(
    ("plan", "policy", "on"),
    [
        ({"saturated": True}, "Auto", True),
        ({"saturated": True}, "GateAndRoute", True),
        ({"saturated": True}, "LeastTTFT", False),
        ({"saturated": True}, "RoundRobin", False),
        ({"saturated": False}, "Auto", False),
        (None, "Auto", False),
    ],
)
async def test_the_gate_is_on_while_a_plan_in_force_says_so(
    plan: dict[str, bool] | None, policy: str, on: bool
) -> None:
    gate = gate_of(PlanHolder() if plan is None else told(**plan), live(policy))
    assert (gate.current(monotonic()) is not None) is on
    assert gate.current(monotonic() + 61) is None, "past its lease"


async def test_several_gateways_and_processes_share_what_the_plan_admits() -> None:
    gate = gate_of(told(share=0.5), live(), processes=2).current(monotonic())
    assert gate is not None
    assert gate.retry_after_seconds("batch", waiting=1, ttft_objective_seconds=1.0) == pytest.approx(2.0), "1/s of 4/s"


async def test_without_an_operator_a_gateway_makes_its_own_plan_while_somebody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("duet_engine.gateway.gate.REPLAN_SECONDS", 0.05)
    settings, demand, waiting = live(), Demand(), Counter({"batch": 500, "voice": 2})
    gate = Gate(plan=PlanHolder(), live=lambda: settings, demand=demand, workers=busy_fleet(), waiting=lambda: waiting)
    task = asyncio.create_task(gate.run())

    def arrives(name: str) -> None:
        record = RequestRecord(arrived_at=0.0, path="/", streamed=True, class_name=name, prompt_tokens=4000)
        demand.of(record).arrived(record, Objective(ttft_seconds=1.0, itl_seconds=0.05))

    async def sheds(wanted: bool) -> bool:
        arrives("batch")
        found = gate.current(monotonic())
        return (found is not None and found.sheds("batch") and not found.sheds("voice")) is wanted

    arrives("voice")
    await eventually(lambda: sheds(True), "a plan of its own")
    waiting.clear()
    gate.plan.take(RoutingPlan(lease_seconds=60.0), monotonic())
    await eventually(lambda: sheds(False), "the operator's plan to go first")
    task.cancel()


# --- what it does ---


class Gated:
    """A dispatcher whose gate is switched by hand, before workers that take one prompt at a time."""

    def __init__(self) -> None:
        self.gate: ClassGate | None = None
        self.left: list[str] = []
        self.go = asyncio.Event()
        settings = live()
        self.dispatcher = Dispatcher(
            busy_fleet(),
            live=lambda: settings,
            limits=Limits(),
            window_seconds=lambda: 0.0,
            gate=lambda _: self.gate,
        )

    async def serve(self, class_name: str) -> None:
        assignment = await self.dispatcher.assign(
            asked(class_name), prompt_tokens=2000, arrived_at=monotonic(), excluded_until={}
        )
        self.left.append(class_name)
        await self.go.wait()
        assignment.release()
        self.dispatcher.wake()

    async def all_wait_but_the_first(self, group: asyncio.TaskGroup, *names: str) -> None:
        for name in names:
            group.create_task(self.serve(name))

        async def waiting() -> bool:
            return self.dispatcher.waiting_requests == len(names) - 1

        await eventually(waiting, "the others to wait")


async def test_at_saturation_the_higher_class_leaves_first_and_the_lower_is_told_early() -> None:
    gated = Gated()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        await gated.all_wait_but_the_first(group, "batch", "batch", "batch", "batch", "batch", "voice", "voice")
        gated.gate = ClassGate(PLANS)
        with pytest.raises(GatewayError, match="class batch") as refused:
            await gated.dispatcher.assign(asked("batch"), prompt_tokens=1, arrived_at=monotonic(), excluded_until={})
        assert (refused.value.status, refused.value.retry_after_seconds) == (429, 1.25), "4 wait, 4 leave a second"
        gated.go.set()
    assert gated.left == ["batch", "voice", "voice", "batch", "batch", "batch", "batch"], "and nobody starves"


async def test_without_the_gate_order_is_that_of_arrival() -> None:
    gated = Gated()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        await gated.all_wait_but_the_first(group, "batch", "batch", "voice", "batch")
        gated.go.set()
    assert gated.left == ["batch", "batch", "voice", "batch"]


# --- what bounds it ---


@pytest.mark.parametrize(
    ("hold", "status", "says"),
    [
        ({"maxRequests": 2, "timeoutSeconds": 60}, 429, "queue is full; no decode worker is ready"),
        ({"maxBytes": 1, "timeoutSeconds": 60}, 429, "queue is full"),
        ({"maxRequests": 9, "timeoutSeconds": 1}, 503, "no decode worker is ready"),
    ],
)
async def test_with_no_worker_at_all_requests_are_held_within_the_objects_bounds(
    hold: dict[str, int], status: int, says: str
) -> None:
    settings = live(**hold)
    dispatcher = Dispatcher(Workers("g"), live=lambda: settings, limits=Limits(), window_seconds=lambda: 0.1)

    async def ask() -> None:
        await dispatcher.assign(asked("voice"), prompt_tokens=100, arrived_at=monotonic(), excluded_until={})

    tasks = [asyncio.create_task(ask()) for _ in range(3)]
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION, timeout=20)
    error = next(iter(done)).exception()
    assert isinstance(error, GatewayError)
    assert (error.status, says in error.message) == (status, True), error.message
    assert error.retry_after_seconds
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert dispatcher.waiting_requests == 0
