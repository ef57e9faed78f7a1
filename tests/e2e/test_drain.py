"""Drains end well: they are called off when load returns, and evictions wait for them."""

import asyncio

import pytest
from tests.support.recorder import Recorder
from tests.support.serving import CHANGE_SECONDS, PROMPT_TOKENS, Serving, counts
from tests.support.waiting import until

from duet_dev.kubeapi import ApiError
from duet_operator.cluster import POD

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

LONG_ANSWER_TOKENS = 400
"""Twenty seconds of decode."""


async def test_returning_load_calls_a_drain_off_and_costs_no_cold_start(serving: Serving) -> None:
    await serving.apply_and_wait()
    async with serving.load((PROMPT_TOKENS, LONG_ANSWER_TOKENS)) as load:
        load.requests_per_second = 2.0
        await serving.until("decode has grown", lambda found: counts(found, "ready")[1] >= 3)
        await serving.settled()
        async with Recorder(serving) as recorder:
            load.requests_per_second = 0.0
            await serving.until("a worker drains", lambda found: counts(found, "draining")[1] > 0)
            load.requests_per_second = 2.0
            await serving.until("no worker drains", lambda found: counts(found, "draining")[1] == 0)
            back = await serving.settled()
            load.requests_per_second = 0.0

    assert load.failures == []
    assert counts(back, "ready")[1] >= 3
    assert [worker.name for worker in recorder.drained if worker.role == "decode"]
    assert recorder.lost == []
    assert len(recorder.of("decode")) == counts(back, "replicas")[1], "a new worker was started"


async def test_an_evicted_worker_finishes_what_it_has(serving: Serving) -> None:
    await serving.apply_and_wait({"spec.pools.decode.minReplicas": 2, "spec.pools.prefill.minReplicas": 2})
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20), (PROMPT_TOKENS, 100)) as load:
        load.requests_per_second = 1.5
        await load.ended(4, seconds=30)
        evicted = [(await serving.pods(role))[0]["metadata"] for role in ("prefill", "decode")]
        for metadata in evicted:
            await _evict(serving, metadata)

        async def replaced() -> bool:
            return all(recorder.workers[metadata["uid"]].gone for metadata in evicted)

        await until("the evicted workers are gone", replaced, seconds=CHANGE_SECONDS)
        await serving.settled()
        await load.ended(4, seconds=30)
        load.requests_per_second = 0.0

    assert load.failures == []


async def _evict(serving: Serving, metadata: dict[str, str]) -> None:
    """As `kubectl drain` does it, which repeats while a disruption budget says no."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata["name"], "namespace": serving.namespace},
    }
    async with asyncio.timeout(CHANGE_SECONDS):
        while True:
            try:
                await serving.api.post(POD.path(serving.namespace, metadata["name"], "eviction"), body)
            except ApiError as error:
                if error.status != 429:
                    raise
                await asyncio.sleep(1)
            else:
                return
