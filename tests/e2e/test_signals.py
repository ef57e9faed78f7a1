"""What is missing is said and never taken for an idle hour: GPUs that aren't there, gateways that don't answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.support.duet_objects import Document
from tests.support.recorder import Recorder
from tests.support.serving import (
    CHANGE_SECONDS,
    PROMPT_TOKENS,
    Serving,
    condition,
    counts,
    explained,
    status,
)
from tests.support.waiting import until

from duet_dev.kubeapi import STRATEGIC_MERGE
from duet_operator.cluster import DEPLOYMENT, POD

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

CLOSED = {"key": "tests.duetserve.io/closed", "effect": "NoSchedule"}
STABILIZATION_SECONDS = 4
SCARCE = "nvidia.com/mig-1g.10gb"
"""No other test uses it."""


@asynccontextmanager
async def only(serving: Serving, amount: int) -> AsyncIterator[None]:
    """The first node has so many of the scarce resource, the others none."""
    before = {
        node["metadata"]["name"]: node["status"]["capacity"][SCARCE]
        for node in (await serving.api.get("/api/v1/nodes"))["items"]
    }
    try:
        for index, name in enumerate(sorted(before)):
            await has(serving, name, str(amount if index == 0 else 0))
        yield
    finally:
        for name, capacity in before.items():
            await has(serving, name, capacity)


async def has(serving: Serving, node: str, amount: str) -> None:
    status = {"capacity": {SCARCE: amount}, "allocatable": {SCARCE: amount}}
    await serving.api.patch(f"/api/v1/nodes/{node}/status", {"status": status}, kind=STRATEGIC_MERGE)


async def test_pods_that_find_no_gpu_are_said_and_taken_back_and_not_multiplied(serving: Serving) -> None:
    gpu = {"resourceName": SCARCE}
    async with only(serving, 2):
        await serving.apply_and_wait({"spec.pools.prefill.gpu": gpu, "spec.pools.decode.gpu": gpu})
        async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20)) as load:
            load.requests_per_second = 2.5
            held = await serving.until("it says so", lambda found: condition(found, "CapacityPending") == "True")
            reason, message = explained(held, "CapacityPending")
            assert reason == "PodsPending"
            assert "Unschedulable" in message
            seen = len(recorder.counts["decode"])
            short = await serving.until(
                "the surplus is taken back",
                lambda found: counts(found, "replicas")[1] == 1 and "PendingPods" in limits(found),
            )
            assert condition(short, "CapacityPending") == condition(short, "ScalingLimited") == "True"
            since = recorder.counts["decode"][seen - 1 :]
            assert since == sorted(since, reverse=True), "more were asked for of what finds no place"
            load.requests_per_second = 2.0

            await has(serving, "gpu-1", "8")
            await serving.until("the pods found GPUs", lambda found: condition(found, "CapacityPending") == "False")
            await serving.until("more than one decodes", lambda found: counts(found, "ready")[1] > 1)
            load.requests_per_second = 0.0
        assert load.failures == []
        assert not [worker for worker in recorder.lost if worker.has_been_ready]


def limits(found: Document) -> list[str]:
    """What keeps the last decision from what the load needs."""
    named: list[str] = status(found).get("decision", {}).get("limitedBy", [])
    return named


async def test_without_gateways_the_counts_are_held_and_the_silence_is_said_until_they_come_back(
    serving: Serving,
) -> None:
    # Nothing shrinks before the gateways are gone, however long that takes.
    await serving.apply_and_wait({"spec.scaling.scaleDown.stabilizationSeconds": 120})
    async with serving.load((PROMPT_TOKENS, 20)) as load:
        load.requests_per_second = 6.0
        await serving.until("decode has grown", lambda found: counts(found, "ready")[1] >= 2)
        load.requests_per_second = 0.0
    assert load.failures == []
    async with no_gateways(serving), Recorder(serving) as recorder:
        silent = await serving.until("it says so", lambda found: condition(found, "SignalsFresh") == "False")
        assert all(explained(silent, "SignalsFresh"))
        assert condition(silent, "Ready") == "False"
        assert condition(silent, "ScalingActive") == "False"
        await serving.change({"scaling": {"scaleDown": {"stabilizationSeconds": STABILIZATION_SECONDS}}})
        await asyncio.sleep(3 * STABILIZATION_SECONDS)
        assert [len(seen) for seen in recorder.counts.values()] == [1, 1]
        assert recorder.counts["decode"][0] >= 2
        assert recorder.drained == []

    await serving.until("signals are back", lambda found: condition(found, "SignalsFresh") == "True")
    await serving.until("the pools follow the load again", lambda found: counts(found, "replicas") == (1, 1))

    # Gateways that somebody scales away come back by the operator itself.
    path = DEPLOYMENT.path(serving.namespace, f"{serving.name}-gateway", "scale")
    await serving.api.patch(path, {"spec": {"replicas": 0}})

    async def repaired() -> bool:
        return await serving.replicas("gateway") == 1

    await until("the gateway has its replica", repaired, seconds=CHANGE_SECONDS)


@asynccontextmanager
async def no_gateways(serving: Serving) -> AsyncIterator[None]:
    """Gateway pods die and find no node for the next ones meanwhile."""
    nodes = (await serving.api.get("/api/v1/nodes"))["items"]
    before = {node["metadata"]["name"]: node["spec"].get("taints", []) for node in nodes}
    try:
        # Not cordoned, for then workers would move too.
        for node, taints in before.items():
            await serving.api.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": [*taints, CLOSED]}})
        for pod in await serving.pods("gateway"):
            await serving.api.delete(POD.path(serving.namespace, pod["metadata"]["name"]), {"gracePeriodSeconds": 0})
        yield
    finally:
        for node, taints in before.items():
            await serving.api.patch(f"/api/v1/nodes/{node}", {"spec": {"taints": taints}})
