"""Pools that follow the load: they grow when it steps up, shrink without losing a request, and sleep where they may."""

import re
from itertools import pairwise

import pytest
from tests.support.duet_objects import Document
from tests.support.operator_release import OperatorRelease
from tests.support.recorder import WORKER_ROLES, Recorder
from tests.support.serving import CHANGE_SECONDS, PROMPT_TOKENS, Serving, condition, counts, explained, status
from tests.support.waiting import until

from duet_engine.protocol import DEMAND_PATH, GatewayDemand

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LOW, HIGH = 0.5, 10.0
"""Requests per second that one worker of each pool holds, and that need three prefill and five decode workers."""
TELLING_REQUESTS = 12
"""Within the demand window of four seconds they ask for 60 tokens/s, nearly twice what one decode worker holds."""
FEWEST_REQUESTS = 500
SHORT = (PROMPT_TOKENS * 2 // 5, 10)
MANY = 2.5 * HIGH
"""Short requests per second, which ask for as many tokens as HIGH of the others."""
LONG_ANSWER_TOKENS = 400
"""Twenty seconds of decode: longer than it takes to notice a lull, so that answers are under way when drains begin."""
FEW = 0.25
"""Requests per second with long answers: one for each of five workers at a time, which need four at most."""
LEAST_IDLE_SECONDS = 10
"""The API takes no less."""


async def test_a_load_step_grows_both_pools_and_is_explained(serving: Serving, operator: OperatorRelease) -> None:
    await serving.apply_and_wait()
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20)) as load:
        load.requests_per_second = LOW
        await load.ended(4, seconds=60)
        assert counts(await serving.object(), "desired") == (1, 1)
        load.requests_per_second = HIGH
        passes = await passes_from_demand_to_growth(serving, operator, recorder)
        await serving.until("both pools have grown", lambda found: min(counts(found, "ready")) >= 2)
        load.requests_per_second = 0.0

        def told(found: Document) -> bool:
            """A count is seen before the pass that set it has told of it."""
            return all(steps_of(found, role) == list(pairwise(recorder.counts[role])) for role in WORKER_ROLES)

        grown = await serving.until("each step is told", told)

    assert load.failures == []
    assert passes <= 2
    noted = [event["note"].partition(" (")[0] for event in await serving.events() if event["reason"] == "ScaledUp"]
    for role in WORKER_ROLES:
        assert recorder.counts[role] == sorted(recorder.counts[role])
        for step in (step for step in status(grown)["history"] if step["pool"] == role):
            before, after = step["fromReplicas"], step["toReplicas"]
            assert step["reason"] in ("LoadRising", "Backlog")
            assert re.search(rf"{role} {before}→{after}: [\d.]+k? (output|input) tok/s expected", step["message"])
            assert re.search(r"one replica (holds|prefills) [\d.]+k?", step["message"])
            assert f"{role} {before}→{after}" in noted


def steps_of(found: Document, role: str) -> list[tuple[int, int]]:
    history = status(found).get("history", ())
    return [(step["fromReplicas"], step["toReplicas"]) for step in history if step["pool"] == role]


async def passes_from_demand_to_growth(serving: Serving, operator: OperatorRelease, recorder: Recorder) -> int:
    """Passes of the control loop that ended after the gateway had counted the step and before a count was patched."""
    before = await arrivals(serving)

    async def shown() -> bool:
        return await arrivals(serving) - before >= TELLING_REQUESTS

    await until("the gateway has counted the step", shown, seconds=CHANGE_SECONDS)
    ended = [await operator.passes()]

    async def patched() -> bool:
        passes = await operator.passes()
        if max(len(seen) for seen in recorder.counts.values()) > 1:
            # Those that ended since the last look may have ended after the patch.
            return True
        ended.append(passes)
        return False

    await until("a count was patched", patched, seconds=CHANGE_SECONDS)
    return ended[-1] - ended[0]


async def arrivals(serving: Serving) -> int:
    (gateway,) = await serving.pods("gateway")
    document = GatewayDemand.model_validate(await serving.gateway(gateway, DEMAND_PATH))
    return sum(each.arrivals_total for each in document.classes)


async def test_growing_and_shrinking_lose_no_request(serving: Serving) -> None:
    await serving.apply_and_wait()
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 25)) as load:
        load.requests_per_second = HIGH
        await serving.until("all five decode", lambda found: counts(found, "ready")[1] == 5)
        load.lengths, load.requests_per_second = [SHORT], MANY
        await load.ended(FEWEST_REQUESTS - len(load.records), seconds=120)
        load.lengths = [(PROMPT_TOKENS, LONG_ANSWER_TOKENS)]
        load.requests_per_second = FEW
        load.send(5)
        await serving.until("decode shrinks", lambda found: counts(found, "replicas")[1] < 5, seconds=120)
        load.requests_per_second = 0.0
        await serving.until("both pools have shrunk", lambda found: counts(found, "replicas") == (1, 1), seconds=120)

    assert len(load.records) >= FEWEST_REQUESTS
    assert load.failures == []
    for record in load.records:
        if record.streamed:
            assert len(record.gaps_milliseconds) == record.output_tokens - 1, record
    left = [worker for worker in recorder.drained if worker.leaving]
    assert {worker.role for worker in left} == set(WORKER_ROLES)
    assert sum(worker.work_at_drain for worker in left) > 0, "no drain began with a request under way"
    # Who was still starting held nothing, and needs no drain.
    assert {worker.name for worker in recorder.lost if worker.has_been_ready} <= {worker.name for worker in left}


async def test_an_idle_object_has_no_worker_and_the_next_request_waits_for_one(serving: Serving) -> None:
    minima = {"spec.pools.prefill.minReplicas": 0, "spec.pools.decode.minReplicas": 0}
    await serving.apply_and_wait(minima)
    async with serving.load((PROMPT_TOKENS, 20)) as load:
        load.send(1)
        await load.ended(1, seconds=CHANGE_SECONDS)
        await serving.change({"scaling": {"idleSeconds": LEAST_IDLE_SECONDS}})
        asleep = await serving.until("nobody is wanted", lambda found: explained(found, "Ready")[0] == "Idle")
        assert condition(asleep, "Ready") == "True"

        async def nobody() -> bool:
            return not [pod for role in WORKER_ROLES for pod in await serving.pods(role)]

        await until("no worker is left", nobody, seconds=CHANGE_SECONDS)
        load.send(1)
        await load.ended(1, seconds=CHANGE_SECONDS)
    assert load.failures == []
    woken = [step for step in status(await serving.object())["history"] if step["fromReplicas"] == 0]
    assert "decode" in {step["pool"] for step in woken}
