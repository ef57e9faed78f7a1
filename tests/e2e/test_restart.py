"""An operator that dies or restarts at the worst moments: the pools serve on, and end where they should."""

import pytest
from tests.support.operator_release import OperatorRelease
from tests.support.recorder import Recorder
from tests.support.serving import CHANGE_SECONDS, ENGINE_ARGUMENTS, PROMPT_TOKENS, Serving, counts, ready_pods, status
from tests.support.steady_load import SteadyLoad
from tests.support.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LONG_ANSWER_TOKENS = 300
"""Fifteen seconds of decode, so that a drain lasts."""
EACH_WORKER_BUSY = 4
"""So many at once leave none of two decode workers without one."""
SLOW_START_SECONDS = 8


def manual(*, prefill: int, decode: int) -> dict[str, object]:
    """A spec that holds these counts."""
    return {
        "scaling": {"mode": "Manual"},
        "pools": {"prefill": {"replicas": prefill}, "decode": {"replicas": decode}},
    }


async def draining_under_load(serving: Serving, load: SteadyLoad) -> None:
    """Two decode workers with long answers under way, of which one is to leave."""
    load.send(EACH_WORKER_BUSY)
    load.requests_per_second = 0.2
    await serving.change(manual(prefill=1, decode=1))
    await serving.until("a worker drains", lambda found: counts(found, "draining") == (0, 1))


async def test_a_drain_whose_operator_was_killed_ends_by_itself(serving: Serving, operator: OperatorRelease) -> None:
    await serving.apply_and_wait({"spec.scaling.mode": "Manual", "spec.pools.decode.replicas": 2})
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, LONG_ANSWER_TOKENS)) as load:
        await draining_under_load(serving, load)
        await operator.kill()
        (victim,) = recorder.drained
        (pod,) = [pod for pod in await serving.pods("decode") if pod["metadata"]["name"] == victim.name]

        async def serves() -> bool:
            return (await serving.engine(pod, "drain"))["phase"] == "serving"

        await until("the drain's lease has run out", serves, seconds=CHANGE_SECONDS)

        async def both_ready() -> bool:
            return len(await ready_pods(serving, "decode")) == 2

        await until("both decode workers are in rotation", both_ready, seconds=CHANGE_SECONDS)
        await load.ended(2, seconds=120)
        assert recorder.lost == []
        assert recorder.counts["decode"] == [2]

        load.requests_per_second = 0.0
        await operator.start()
        await serving.until("the pool has shrunk", lambda found: counts(found, "replicas") == (1, 1), seconds=120)

    assert load.failures == []
    assert recorder.counts["decode"] == [2, 1]


async def test_a_restart_in_the_middle_of_a_drain_goes_on_with_it(serving: Serving, operator: OperatorRelease) -> None:
    await serving.apply_and_wait({"spec.scaling.mode": "Manual", "spec.pools.decode.replicas": 2})
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, LONG_ANSWER_TOKENS)) as load:
        await draining_under_load(serving, load)
        await operator.stop()
        assert recorder.counts["decode"] == [2]
        load.requests_per_second = 0.0
        await operator.start()
        await serving.until("the pool has shrunk", lambda found: counts(found, "replicas") == (1, 1), seconds=120)
        await serving.settled()

    assert load.failures == []
    assert recorder.counts["decode"] == [2, 1]
    assert [worker.role for worker in recorder.lost] == ["decode"]
    assert all(worker.drains for worker in recorder.lost)


async def test_a_restart_while_new_workers_start_asks_for_no_more(serving: Serving, operator: OperatorRelease) -> None:
    slow = [*ENGINE_ARGUMENTS, "--cold-start-seconds", str(SLOW_START_SECONDS)]
    await serving.apply_and_wait({"spec.engine.args": slow})
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20)) as load:
        load.requests_per_second = 0.5
        await load.ended(2, seconds=60)
        await serving.change(manual(prefill=2, decode=3))
        await serving.until("workers start", lambda found: counts(found, "starting") == (1, 2))
        await operator.stop()

        async def all_ready() -> bool:
            return [len(await ready_pods(serving, role)) for role in ("prefill", "decode")] == [2, 3]

        await until("the new workers serve without an operator", all_ready, seconds=CHANGE_SECONDS)
        await load.ended(2, seconds=60)
        await operator.start()
        found = await serving.until("all are counted", lambda found: counts(found, "ready") == (2, 3))
        await load.ended(2, seconds=60)
        load.requests_per_second = 0.0

    assert load.failures == []
    assert recorder.counts == {"prefill": [1, 2], "decode": [1, 3]}
    assert len(recorder.workers) == 5
    actions = [(step["pool"], step["fromReplicas"], step["toReplicas"]) for step in status(found)["history"]]
    assert sorted(actions) == [("decode", 1, 3), ("prefill", 1, 2)]
