"""The paper's stochastic model: requests are conserved, no slot is used twice, revenue stays under the fluid bound."""

import pytest
from tests.support.many_servers import ManyServers, Scheme

from duet_engine.policy.fluid_model import Prices, TrafficClass, WorkerPace
from duet_engine.policy.fluid_plan import fluid_plan
from duet_engine.policy.gate import FirstComeGate, PlanGate, PriorityGate
from duet_engine.policy.router import GreedyRouter, ShareRouter

CLASSES = [
    TrafficClass(name="d", prompt_tokens=300, output_tokens=1000, arrivals_per_second=0.5, impatience_per_second=0.1),
    TrafficClass(name="p", prompt_tokens=3000, output_tokens=400, arrivals_per_second=0.5, impatience_per_second=0.1),
]
PACE = WorkerPace(chunk_tokens=256, batch_slots=16, mixed_step_seconds=0.0333, solo_step_seconds=0.022)
PRICES = Prices()
PLAN = fluid_plan(CLASSES, PACE, PRICES)
SCHEMES = [
    Scheme("back pressure", lambda plan, n: PlanGate(plan, workers=n), lambda _: GreedyRouter(), True),
    Scheme(
        "gate, greedy, plan",
        lambda plan, n: PlanGate(plan, workers=n, back_pressure=False),
        lambda _: GreedyRouter(),
        True,
    ),
    Scheme("gate, shares, plan", lambda plan, n: PlanGate(plan, workers=n), ShareRouter, True),
    Scheme("priority, greedy, plan", lambda plan, _: PriorityGate(plan.classes), lambda _: GreedyRouter(), True),
    Scheme("gate, greedy", lambda plan, n: PlanGate(plan, workers=n), lambda _: GreedyRouter(), False),
    Scheme("first come, immediate", lambda _, __: FirstComeGate(), None, False),
]


def servers(scheme: Scheme, *, workers: int, seed: int = 1) -> ManyServers:
    prices = [PRICES.request(one) for one in CLASSES]
    return ManyServers(PLAN, workers=workers, scheme=scheme, prices=prices, seed=seed)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_requests_are_conserved_and_slots_used_once(scheme: Scheme) -> None:
    cluster = servers(scheme, workers=7)

    def check() -> None:
        measured = cluster.measured
        assert measured.arrived == measured.completed + measured.given_up + cluster.present()
        assert min(cluster.waiting_counts + cluster.prefilling_counts + cluster.buffered) >= 0
        for worker in range(cluster.workers):
            prefills = cluster.prefill_of[worker] >= 0
            assert cluster.total_of[worker] == sum(cluster.decodes_of[worker]) <= PACE.batch_slots - prefills
            if scheme.static_plan and worker >= cluster.mixed_workers:
                assert not prefills

    cluster.run(60.0, after=check)
    assert cluster.measured.completed > 20


def test_the_printed_gate_leaves_no_prefill_slot_idle_while_someone_waits() -> None:
    cluster = servers(SCHEMES[1], workers=7)

    def check() -> None:
        assert not (cluster.idle and any(cluster.waiting_counts))

    cluster.run(60.0, after=check)
    assert cluster.measured.given_up > 0


def test_a_seed_is_a_run() -> None:
    runs = [servers(SCHEMES[0], workers=5, seed=3) for _ in range(2)]
    for run in runs:
        run.run(50.0)
    assert runs[0].measured == runs[1].measured


def test_revenue_comes_near_the_fluid_bound_with_many_workers() -> None:
    """Theorem 4.1, roughly: within an eighth of R* at 40 workers."""
    cluster = servers(SCHEMES[0], workers=40)
    cluster.run(120.0)
    cluster.reset()
    cluster.run(120.0)
    earned = cluster.measured.revenue / cluster.measured.seconds / cluster.workers
    assert 0.88 < earned / PLAN.revenue_per_second < 1.08
