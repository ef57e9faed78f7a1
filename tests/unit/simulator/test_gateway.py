"""The simulated gateway decides as the live one does: by the same object, late prompts behind, warm workers known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tests.support.small_fleets import PLAIN_LIMITS, RULE, pairs, pool

from duet_engine.policy.dispatch import Dispatch, Hold, Local, Pair
from duet_engine.policy.fleet import Fleet, Prompt
from duet_engine.protocol import Role
from duet_engine.simulator.run import simulate
from duet_engine.simulator.workload import Request


class InOrder:
    """The live dispatch without late demotion."""

    def __init__(self) -> None:
        self._dispatch = Dispatch()

    def dispatch(self, waiting: Sequence[Prompt], fleet: Fleet) -> Sequence[Pair | Local | Hold]:
        return self._dispatch(waiting, fleet, RULE, window_seconds=0.15)


def test_under_overload_late_prompts_wait_behind_those_that_can_be_in_time() -> None:
    coming = [Request(0.03 * index, 900, 5) for index in range(300)]
    live = simulate(pairs(), coming)
    in_order = simulate(pairs(dispatch=InOrder), coming)

    assert live.ttft_met.mean() > 2 * in_order.ttft_met.mean()
    assert np.any(np.diff(live.requests.dispatched_seconds) < 0)


def test_a_prompt_goes_where_its_beginning_was_computed_before() -> None:
    caching = {"limits": replace(PLAIN_LIMITS, prefix_cache=True)}
    scenario = replace(pairs(), prefill=pool(Role.PREFILL, 3, **caching))
    turns = [Request(2.0 * index, 2048 + 512, 3, (1, 2, 3, 4, 100 + index)) for index in range(6)]
    rows = simulate(scenario, turns).requests

    assert len(set(rows.prefill_worker)) == 1
    assert (rows.cached_tokens[1:] == 2048).all()
