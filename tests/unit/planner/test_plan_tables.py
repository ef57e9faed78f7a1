"""What the planner decides in named situations."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.support.planning import SLICE, SLICES, WHOLE, bounds, decide, demand, seen, serving, spec

from duet_operator.planner.memory import with_demand, with_need
from duet_operator.planner.mode import apply_mode, initial_counts
from duet_operator.planner.reasons import Reason
from duet_operator.planner.types import Counts, Observation, Performance, PlannerMemory, PlanSpec, PoolState


def remembered(observation: Observation, spec: PlanSpec) -> PlannerMemory:
    """A memory in which the same demand was seen, and nothing more was needed, for the whole stabilization window."""
    memory = PlannerMemory()
    for ago in range(40, 0, -1):
        now = observation.now_seconds - ago * spec.interval_seconds
        if observation.demand is not None:
            memory = with_demand(memory, observation.demand, now_seconds=now)
        memory = with_need(memory, Counts(0, 0), now_seconds=now, window_seconds=spec.stabilization_seconds)
    return memory


@dataclass(frozen=True)
class Case:
    name: str
    observation: Observation
    expected: tuple[int, int]
    reason: Reason
    spec: PlanSpec = field(default_factory=spec)
    performance: Performance = SLICES
    fresh: bool = False
    limited_by: frozenset[Reason] = frozenset()


def case(name: str, expected: tuple[int, int], reason: Reason, **changes: Any) -> Case:
    own = {key: changes.pop(key) for key in ("spec", "performance", "fresh", "limited_by") if key in changes}
    return Case(name, seen(**changes), expected, reason, **own)


BUSY = demand(20)
CASES = [
    case("idle, deflection active: no prefill worker", (0, 1), Reason.LOAD_FALLING),
    case(
        "idle, right after a restart: the present counts count as needed",
        (3, 4),
        Reason.STABILIZATION,
        prefill=3,
        decode=4,
        fresh=True,
        limited_by=frozenset({Reason.STABILIZATION}),
    ),
    case(
        "idle, deflection off: one prefill worker stays",
        (1, 1),
        Reason.MIN_REPLICAS,
        spec=spec(deflection_enabled=False),
        limited_by=frozenset({Reason.DEFLECTION_INACTIVE}),
    ),
    case(
        "no decode worker reports deflection yet: a prefill worker is asked for",
        (1, 1),
        Reason.DEFLECTION_INACTIVE,
        prefill=0,
        deflection_active=False,
        limited_by=frozenset({Reason.DEFLECTION_INACTIVE}),
    ),
    case(
        "a whole GPU at five requests/s needs no prefill worker",
        (0, 1),
        Reason.LOAD_FALLING,
        demand=demand(5),
        performance=Performance(prefill=WHOLE, decode=WHOLE),
    ),
    case("load: both pools grow at once and by several", (4, 7), Reason.LOAD_RISING, demand=BUSY),
    case("load that fits: nothing changes", (5, 7), Reason.SUFFICIENT, prefill=5, decode=7, demand=BUSY),
    case(
        "more than maxReplicas",
        (4, 3),
        Reason.LOAD_RISING,
        demand=BUSY,
        spec=spec(decode=bounds(1, 3)),
        limited_by=frozenset({Reason.MAX_REPLICAS}),
    ),
    case(
        "held at maxReplicas",
        (5, 3),
        Reason.MAX_REPLICAS,
        prefill=5,
        decode=3,
        demand=BUSY,
        spec=spec(decode=bounds(1, 3)),
        limited_by=frozenset({Reason.MAX_REPLICAS}),
    ),
    case("at least minReplicas", (2, 4), Reason.MIN_REPLICAS, spec=spec(prefill=bounds(2, 8), decode=bounds(4, 8))),
    case(
        "more than maxGPUs: both in proportion",
        (2, 5),
        Reason.LOAD_RISING,
        demand=BUSY,
        spec=spec(max_gpus=7),
        limited_by=frozenset({Reason.MAX_GPUS}),
    ),
    case(
        "maxGPUs counts pods that are still leaving",
        (2, 2),
        Reason.MAX_GPUS,
        prefill=2,
        decode=PoolState(replicas=2, ready=2, draining=3),
        demand=BUSY,
        spec=spec(max_gpus=7),
        limited_by=frozenset({Reason.MAX_GPUS}),
    ),
    case(
        "maxGPUs counts pods that were evicted and hold their GPUs until they are gone",
        (2, 2),
        Reason.MAX_GPUS,
        prefill=2,
        decode=PoolState(replicas=2, ready=1, starting=1, terminating=3),
        demand=BUSY,
        spec=spec(max_gpus=7),
        limited_by=frozenset({Reason.MAX_GPUS}),
    ),
    case(
        "maxGPUs lowered under what runs",
        (2, 5),
        Reason.MAX_GPUS,
        prefill=5,
        decode=7,
        demand=BUSY,
        spec=spec(max_gpus=7),
        limited_by=frozenset({Reason.MAX_GPUS}),
    ),
    case(
        "maxGPUs lowered: no stabilization against the user's own wish",
        (2, 5),
        Reason.MAX_GPUS,
        prefill=5,
        decode=7,
        demand=BUSY,
        spec=spec(max_gpus=7),
        fresh=True,
        limited_by=frozenset({Reason.MAX_GPUS}),
    ),
    case(
        "a pool grows only after the other has left its GPUs",
        (2, 1),
        Reason.LOAD_FALLING,
        prefill=2,
        decode=9,
        demand=demand(14, output_tokens=20.0),
        spec=spec(max_gpus=11),
        limited_by=frozenset({Reason.MAX_GPUS}),
    ),
    case(
        "maxReplicas lowered: no stabilization against the user's own wish",
        (9, 3),
        Reason.MAX_REPLICAS,
        prefill=9,
        decode=9,
        demand=BUSY,
        spec=spec(decode=bounds(1, 3)),
        fresh=True,
        limited_by=frozenset({Reason.MAX_REPLICAS, Reason.STABILIZATION}),
    ),
    case(
        "pods pending too long aren't multiplied",
        (4, 2),
        Reason.LOAD_RISING,
        decode=PoolState(replicas=2, ready=1, pending_too_long=1),
        demand=BUSY,
        limited_by=frozenset({Reason.PENDING_PODS}),
    ),
    case(
        "a surplus that finds no place is taken back, whatever the load",
        (5, 2),
        Reason.REBALANCED,
        decode=PoolState(replicas=6, ready=2, pending_too_long=4, room=2),
        demand=BUSY,
        fresh=True,
        limited_by=frozenset({Reason.PENDING_PODS}),
    ),
    case(
        "and isn't asked for again while there is no place",
        (4, 2),
        Reason.LOAD_RISING,
        decode=PoolState(replicas=2, ready=2, room=2),
        demand=BUSY,
        limited_by=frozenset({Reason.PENDING_PODS}),
    ),
    case(
        "a minimum that finds no place stays asked for",
        (4, 4),
        Reason.LOAD_RISING,
        decode=PoolState(replicas=4, ready=2, pending_too_long=2, room=2),
        demand=BUSY,
        spec=spec(decode=bounds(4, 8)),
        limited_by=frozenset({Reason.PENDING_PODS}),
    ),
    case(
        "pods pending too long don't keep a pool from shrinking",
        (0, 1),
        Reason.LOAD_FALLING,
        prefill=3,
        decode=PoolState(replicas=6, ready=3, pending_too_long=3),
    ),
    case(
        "starting pods count as coming capacity",
        (5, 7),
        Reason.SUFFICIENT,
        prefill=PoolState(replicas=5, ready=1, starting=4),
        decode=PoolState(replicas=7, ready=1, starting=6),
        demand=BUSY,
    ),
    case(
        "no gateway answers: hold",
        (3, 4),
        Reason.STALE_SIGNALS,
        prefill=3,
        decode=4,
        demand=None,
        complete=False,
        limited_by=frozenset({Reason.STALE_SIGNALS}),
    ),
    case(
        "no gateway answers: still not under a raised minimum",
        (3, 6),
        Reason.STALE_SIGNALS,
        prefill=3,
        decode=4,
        demand=None,
        spec=spec(decode=bounds(6, 8)),
        limited_by=frozenset({Reason.STALE_SIGNALS}),
    ),
    case(
        "a gateway is silent: never lower",
        (9, 9),
        Reason.STALE_SIGNALS,
        prefill=9,
        decode=9,
        demand=BUSY,
        complete=False,
        limited_by=frozenset({Reason.STALE_SIGNALS}),
    ),
    case(
        "a gateway is silent: raise on what is seen",
        (4, 9),
        Reason.LOAD_RISING,
        prefill=1,
        decode=9,
        demand=BUSY,
        complete=False,
        limited_by=frozenset({Reason.STALE_SIGNALS}),
    ),
    case(
        "rollout: never lower",
        (9, 9),
        Reason.ROLLOUT,
        prefill=9,
        decode=9,
        demand=BUSY,
        rollout_in_progress=True,
        limited_by=frozenset({Reason.ROLLOUT}),
    ),
    case("rollout: may grow", (4, 7), Reason.LOAD_RISING, demand=BUSY, rollout_in_progress=True),
    case(
        "nobody knows what a worker can do: the minima",
        (1, 2),
        Reason.MODEL_UNKNOWN,
        prefill=serving(0),
        decode=serving(0),
        performance=Performance(prefill=None, decode=None),
        demand=BUSY,
        deflection_active=False,
        spec=spec(decode=bounds(2, 8)),
        limited_by=frozenset({Reason.MODEL_UNKNOWN}),
    ),
    case(
        "nobody knows: what runs stays",
        (3, 4),
        Reason.MODEL_UNKNOWN,
        prefill=3,
        decode=4,
        demand=BUSY,
        performance=Performance(prefill=None, decode=None),
        limited_by=frozenset({Reason.MODEL_UNKNOWN}),
    ),
    case(
        "one kind of worker stands in for the other",
        (4, 7),
        Reason.LOAD_RISING,
        demand=BUSY,
        performance=Performance(prefill=None, decode=SLICE),
    ),
    case(
        "no stand-in between replicas of unequal size",
        (1, 1),
        Reason.MODEL_UNKNOWN,
        demand=BUSY,
        performance=Performance(prefill=None, decode=SLICE),
        spec=spec(prefill=bounds(0, 8, gpus_per_replica=2)),
        limited_by=frozenset({Reason.MODEL_UNKNOWN}),
    ),
    case("a backlog is cleared", (3, 1), Reason.BACKLOG, demand=demand(2, waiting_tokens=500_000)),
    case(
        "ITL that no worker meets",
        (1, 1),
        Reason.ITL_UNMEETABLE,
        demand=demand(1),
        spec=spec(objective=replace(spec().objective, itl_seconds=0.005)),
        limited_by=frozenset({Reason.ITL_UNMEETABLE}),
    ),
    case("scale to zero when nobody asks", (0, 0), Reason.LOAD_FALLING, spec=spec(decode=bounds(0, 8))),
    case(
        "wake from zero",
        (1, 1),
        Reason.DEFLECTION_INACTIVE,
        prefill=0,
        decode=0,
        demand=demand(0.5),
        spec=spec(decode=bounds(0, 8)),
        limited_by=frozenset({Reason.DEFLECTION_INACTIVE}),
    ),
    case(
        "no prefill pool at all",
        (0, 1),
        Reason.MIN_REPLICAS,
        prefill=0,
        deflection_active=False,
        spec=spec(prefill=bounds(0, 0)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decision(case: Case) -> None:
    memory = PlannerMemory() if case.fresh else remembered(case.observation, case.spec)
    decision = decide(case.observation, spec=case.spec, memory=memory, performance=case.performance)
    assert (decision.prefill.replicas, decision.decode.replicas) == case.expected, decision.message
    assert decision.reason == case.reason
    assert frozenset(decision.limited_by) == case.limited_by


# --- what a decision says ---


def test_message_has_the_numbers_of_both_pools() -> None:
    observation = seen(2, 3, demand=demand(20), cold_start_p90_seconds=105.0)
    decision = decide(observation, spec=spec(), memory=remembered(observation, spec()))
    assert decision.message == (
        "decode 3→7: 4.00k output tok/s expected in 110 s (cold start p90), one replica holds 660 at ITL 50 ms;"
        " prefill 2→4: 20.0k input tok/s expected, one replica prefills 5.05k within TTFT 800 ms,"
        " 0 % of prompts deflected, headroom 1 %."
    )


def test_message_names_what_limits_a_pool() -> None:
    observation = seen(5, decode=PoolState(replicas=3, ready=1, pending_too_long=2), demand=demand(20))
    decision = decide(observation, spec=spec())
    assert "decode stays 3" in decision.message
    assert "7 needed but 2 pods are pending past the deadline" in decision.message


def test_message_tells_of_answers_that_go_on_when_no_request_is_to_come() -> None:
    decision = decide(seen(1, 1, demand=demand(0.0, output_tokens_per_second=400.0)), spec=spec())
    assert "no requests expected" not in decision.message
    assert " output tok/s expected" in decision.message
    assert "no prompts expected" in decision.message
    assert "no requests expected" in decide(seen(1, 1, demand=demand(0.0)), spec=spec()).message


def test_held_message_says_why() -> None:
    decision = decide(seen(2, 3, demand=None, complete=False), spec=spec())
    assert decision.message == "decode stays 3, prefill stays 2: no gateway answered, so nothing changes."
    assert decision.held


def test_deflected_share_is_what_prefill_workers_leave() -> None:
    whole = Performance(prefill=WHOLE, decode=WHOLE)
    observation = seen(0, 1, demand=demand(5))
    decision = decide(observation, spec=spec(), memory=remembered(observation, spec()), performance=whole)
    assert decision.deflected_share == 1.0
    assert "decode workers take all prompts" in decision.message


def test_numbers_behind_a_decision_name_their_units() -> None:
    decision = decide(seen(demand=demand(20)), spec=spec())
    for numbers in (decision.inputs, decision.capacity_per_replica, decision.forecast):
        assert numbers
        assert all(
            name.endswith(("_second", "_milli", "_tokens", "_percent", "_seconds", "_requests")) for name in numbers
        )


# --- prices ---


def test_cheaper_pool_is_preferred() -> None:
    """With deflection on a whole GPU either kind can take the prompts; the price decides."""
    whole = Performance(prefill=WHOLE, decode=WHOLE)
    observation = seen(0, 1, demand=demand(40))

    def chosen(prefill_price: int, decode_price: int) -> Counts:
        priced = spec(
            prefill=bounds(0, 20, price_per_hour_milli=prefill_price),
            decode=bounds(1, 20, price_per_hour_milli=decode_price),
        )
        decision = decide(observation, spec=priced, memory=remembered(observation, priced), performance=whole)
        return Counts(decision.prefill.replicas, decision.decode.replicas)

    assert chosen(1000, 9000).prefill > chosen(9000, 1000).prefill


# --- modes ---


def test_auto_follows_the_decision() -> None:
    observation = seen(1, 1, demand=demand(20))
    decision = decide(observation, spec=spec())
    assert apply_mode("Auto", decision, observation, spec()) == Counts(5, 7)


@pytest.mark.parametrize("mode", ["Recommend", "Manual"])
def test_other_modes_change_no_count_by_themselves(mode: Any) -> None:
    observation = seen(1, 1, demand=demand(20))
    decision = decide(observation, spec=spec())
    assert decision.decode.recommended == 7
    assert apply_mode(mode, decision, observation, spec()) == Counts(1, 1)


def test_manual_takes_the_users_counts() -> None:
    manual = spec(decode=bounds(1, 8, manual_replicas=6))
    observation = seen(2, 3)
    assert apply_mode("Manual", decide(observation, spec=manual), observation, manual) == Counts(2, 6)


@pytest.mark.parametrize(
    ("mode", "planned", "expected"),
    [
        pytest.param("Auto", spec(), Counts(1, 1), id="a first prompt has a place"),
        pytest.param("Auto", spec(prefill=bounds(0, 0)), Counts(0, 1), id="no prefill pool"),
        pytest.param("Auto", spec(prefill=bounds(3, 8), decode=bounds(0, 8)), Counts(3, 1), id="minima"),
        pytest.param("Manual", spec(decode=bounds(1, 8, manual_replicas=4)), Counts(1, 4), id="manual"),
    ],
)
def test_counts_to_create_pools_with(mode: Any, planned: PlanSpec, expected: Counts) -> None:
    assert initial_counts(mode, planned) == expected


# --- what a pass leaves for the next ---


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"complete": False}, id="a gateway was silent"),
        pytest.param({"demand": None, "complete": False}, id="all gateways were silent"),
        pytest.param({"rollout_in_progress": True}, id="rollout"),
    ],
)
def test_nothing_shrinks_right_after_it_was_held(changes: dict[str, Any]) -> None:
    """What couldn't be judged counts as needed for one stabilization window."""
    quiet = seen(5, 6)
    held = replace(quiet, **changes)
    memory = decide(held, spec=spec(), memory=remembered(held, spec())).memory
    for after, expected in ((5.0, Counts(5, 6)), (170.0, Counts(5, 6)), (185.0, Counts(0, 1))):
        decision = decide(replace(quiet, now_seconds=quiet.now_seconds + after), spec=spec(), memory=memory)
        memory = decision.memory
        assert Counts(decision.prefill.replicas, decision.decode.replicas) == expected
