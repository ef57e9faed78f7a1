"""Pools that follow the load: they grow when it steps up, and shrink without losing a request when it goes."""

import re
from itertools import pairwise

import pytest
from tests.support.recorder import WORKER_ROLES, Recorder
from tests.support.serving import PROMPT_TOKENS, Serving, counts, status

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

LOW, HIGH = 0.5, 10.0
"""Requests per second that one worker of each pool holds, and that need three prefill and five decode workers."""
FEWEST_REQUESTS = 500
LONG_ANSWER_TOKENS = 400
"""Twenty seconds of decode: longer than it takes to notice a lull, so that answers are under way when drains begin."""
FEW = 0.25
"""Requests per second with long answers: one for each of five workers at a time, which need four at most."""


async def test_a_load_step_grows_both_pools_and_is_explained(serving: Serving) -> None:
    await serving.apply_and_wait()
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20)) as load:
        load.requests_per_second = LOW
        await load.ended(4, seconds=30)
        assert counts(await serving.object(), "desired") == (1, 1)
        load.requests_per_second = HIGH
        grown = await serving.until("both pools have grown", lambda found: min(counts(found, "ready")) >= 2)
        load.requests_per_second = 0

    assert load.failures == []
    noted = [event["note"].partition(" (")[0] for event in await serving.events() if event["reason"] == "ScaledUp"]
    for role in WORKER_ROLES:
        assert recorder.counts[role] == sorted(recorder.counts[role])
        steps = [step for step in status(grown)["history"] if step["pool"] == role]
        assert [(step["fromReplicas"], step["toReplicas"]) for step in steps] == list(pairwise(recorder.counts[role]))
        for step in steps:
            before, after = step["fromReplicas"], step["toReplicas"]
            assert step["reason"] in ("LoadRising", "Backlog")
            assert re.search(rf"{role} {before}→{after}: [\d.]+k? (output|input) tok/s expected", step["message"])
            assert re.search(r"one replica (holds|prefills) [\d.]+k?", step["message"])
            assert f"{role} {before}→{after}" in noted


async def test_growing_and_shrinking_lose_no_request(serving: Serving) -> None:
    await serving.apply_and_wait()
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 25)) as load:
        load.requests_per_second = HIGH
        await serving.until("all five decode", lambda found: counts(found, "ready")[1] == 5)
        await load.ended(FEWEST_REQUESTS - len(load.records), seconds=120)
        load.lengths = [(PROMPT_TOKENS, LONG_ANSWER_TOKENS)]
        load.send(5)
        load.requests_per_second = FEW
        await serving.until("decode shrinks", lambda found: counts(found, "replicas")[1] < 5, seconds=90)
        load.lengths = [(PROMPT_TOKENS, 25)]
        load.requests_per_second = LOW
        await serving.until("both pools have shrunk", lambda found: counts(found, "replicas") == (1, 1), seconds=90)
        load.requests_per_second = 0

    assert len(load.records) >= FEWEST_REQUESTS
    assert load.failures == []
    for record in load.records:
        if record.streamed:
            assert len(record.gaps_milliseconds) == record.output_tokens - 1, record
    left = [worker for worker in recorder.drained if worker.leaving]
    assert {worker.role for worker in left} == set(WORKER_ROLES)
    assert sum(worker.work_at_drain for worker in left) > 0, "no drain began with a request under way"
    assert {worker.name for worker in recorder.lost} == {worker.name for worker in left}
