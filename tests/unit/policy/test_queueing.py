"""One pass of a gateway's whole policy: order by late demotion, routes by dispatch, workers that refused left alone."""

from tests.support.routing import decode, fleet, prefill

from duet_engine.policy.deflect import DeflectionMode, DeflectionRule
from duet_engine.policy.fleet import Fleet
from duet_engine.policy.queueing import QueuePolicy, Waiting
from duet_engine.policy.routes import Hold, HoldReason, Pair
from duet_engine.slo import Objective

RULE = DeflectionRule(itl_seconds=0.05, mode=DeflectionMode.OFF)
OBJECTIVE = Objective(ttft_seconds=1.0, itl_seconds=0.05)


def waiting(arrived_at: float, tokens: int = 100) -> Waiting:
    return Waiting(arrived_at=arrived_at, prompt_tokens=tokens, output_reserve_tokens=10)


def one_pass(policy: QueuePolicy, queue: list[Waiting], fleet: Fleet, now: float) -> list[Waiting]:
    """Who leaves in a pass, in order."""
    decided = policy(queue, fleet, RULE, window_seconds=0.15, now=now, objective_of=lambda _: OBJECTIVE)
    left = [each for each, route in decided if isinstance(route, Pair)]
    for each in left:
        policy.left(each, now)
    return left


def test_whoever_can_still_be_in_time_overtakes_those_who_cannot() -> None:
    policy = QueuePolicy()
    busy = fleet([prefill(ahead_seconds=9.0)], [decode()])
    idle = fleet([prefill()], [decode()])
    old, young = waiting(0.0), waiting(4.5)

    assert one_pass(policy, [old, young], busy, 5.0) == []
    assert one_pass(policy, [old, young], idle, 5.0)[0] is young


def test_a_worker_that_refused_is_left_alone_until_its_time() -> None:
    policy, prompt = QueuePolicy(), waiting(0.0)
    prompt.excluded_until["p"] = 2.0
    workers = fleet([prefill()], [decode()])

    decided = policy([prompt], workers, RULE, window_seconds=0.15, now=1.0, objective_of=lambda _: OBJECTIVE)
    assert [route for _, route in decided] == [Hold(HoldReason.TRIED_ALL)]
    assert policy.hold_reason(prompt, workers, RULE) is HoldReason.TRIED_ALL
    assert one_pass(policy, [prompt], workers, 2.5) == [prompt]
