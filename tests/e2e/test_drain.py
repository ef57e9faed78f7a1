"""Drains end well: they are called off when load returns; evictions and deletions by hand wait for them."""

import asyncio

import pytest
from tests.support.recorder import Recorder
from tests.support.serving import CHANGE_SECONDS, PROMPT_TOKENS, Serving, counts
from tests.support.waiting import until

from duet_dev.kubeapi import ApiError
from duet_operator.cluster import POD

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LONG_ANSWER_TOKENS = 1000
"""45 seconds of decode: three such answers need two workers, so that one of three has to leave, and they last until
their own burst, for whose return room is kept, is forgotten."""
RETURNING = 2.0
"""Requests per second of 20 tokens that need, beside these, the third worker again."""
TOO_MANY = 429
"""A disruption budget says no."""


async def test_returning_load_calls_a_drain_off_and_costs_no_cold_start(serving: Serving) -> None:
    # One prefill worker whatever comes, for three prompts at once look like a rising load.
    bounds = {"decode.minReplicas": 3, "decode.maxReplicas": 3, "prefill.maxReplicas": 1}
    await serving.apply_and_wait({f"spec.pools.{path}": value for path, value in bounds.items()})
    long, short = serving.load((PROMPT_TOKENS, LONG_ANSWER_TOKENS)), serving.load((PROMPT_TOKENS, 20))
    async with Recorder(serving) as recorder, long, short:
        long.send(3)
        await serving.change({"pools": {"decode": {"minReplicas": 1}}})
        await serving.until("a worker drains", lambda found: counts(found, "draining") == (0, 1))
        short.requests_per_second = RETURNING
        await serving.until("all three serve", lambda found: counts(found, "ready") == (1, 3))
        assert recorder.counts["decode"] == [3]
        assert recorder.lost == []
        await short.ended(5, seconds=60)
        short.requests_per_second = 0.0

    assert long.failures == short.failures == []
    assert {worker.role for worker in recorder.drained if worker.work_at_drain} == {"decode"}
    assert len(recorder.of("decode")) == 3, "a new worker was started"


async def test_a_worker_that_is_evicted_or_deleted_by_hand_finishes_what_it_has(serving: Serving) -> None:
    await serving.apply_and_wait({"spec.pools.decode.minReplicas": 2, "spec.pools.prefill.minReplicas": 2})
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20), (PROMPT_TOKENS, 100)) as load:
        load.requests_per_second = 1.5
        await load.ended(4, seconds=60)
        evicted, deleted = [(await serving.pods(role))[0]["metadata"] for role in ("prefill", "decode")]
        await _evict(serving, evicted)
        await serving.api.delete(POD.path(serving.namespace, deleted["name"]), {})

        async def gone() -> bool:
            return all(recorder.workers[metadata["uid"]].gone for metadata in (evicted, deleted))

        await until("both workers are gone", gone, seconds=CHANGE_SECONDS)
        await serving.settled()
        await load.ended(4, seconds=60)
        load.requests_per_second = 0.0

    assert load.failures == []


async def test_a_worker_leaves_a_cordoned_node_after_its_successor_serves(serving: Serving) -> None:
    await serving.apply_and_wait({"spec.pools.decode.maxReplicas": 1, "spec.pools.prefill.maxReplicas": 1})
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20)) as load:
        load.requests_per_second = 1.0
        await load.ended(2, seconds=60)
        (old,) = recorder.of("decode")
        (pod,) = await serving.pods("decode")
        node = pod["spec"]["nodeName"]
        serving.cluster.kubectl("cordon", node)
        try:

            async def moved() -> bool:
                return old.gone and [worker.leaving for worker in recorder.of("decode")].count(False) == 1

            await until("the worker has moved", moved, seconds=CHANGE_SECONDS)
            (successor,) = await serving.pods("decode")
            assert successor["spec"]["nodeName"] != node
        finally:
            serving.cluster.kubectl("uncordon", node)
        await serving.settled()
        await load.ended(2, seconds=60)
        load.requests_per_second = 0.0

    assert load.failures == []
    assert recorder.counts["decode"] == [1, 2, 1]
    assert (old.drains, old.has_been_ready) == (1, True)


async def _evict(serving: Serving, metadata: dict[str, str]) -> None:
    """As `kubectl drain` does it, which repeats while it's refused."""
    name = {"name": metadata["name"], "namespace": serving.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": name}
    async with asyncio.timeout(CHANGE_SECONDS):
        while True:
            try:
                await serving.api.post(POD.path(serving.namespace, metadata["name"], "eviction"), body)
            except ApiError as error:
                if error.status != TOO_MANY:
                    raise
                await asyncio.sleep(1)
            else:
                return
