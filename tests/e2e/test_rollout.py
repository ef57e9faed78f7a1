"""A new pod template reaches every engine or gateway without a failed request."""

import pytest
from tests.support.recorder import WORKER_ROLES, Recorder
from tests.support.serving import ENGINE_ARGUMENTS, PROMPT_TOKENS, Serving, condition, explained, ready_pods
from tests.support.waiting import until

from duet_operator.resources.labels import REVISION

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ROLLOUT_SECONDS = 150.0
LIGHT = 1.0
"""Requests per second that one worker of each pool holds."""


async def test_a_change_of_engine_arguments_rolls_both_pools_under_load(serving: Serving) -> None:
    await serving.apply_and_wait({"spec.pools.prefill.minReplicas": 2, "spec.pools.decode.minReplicas": 2})
    (old,) = await revisions(serving)
    async with Recorder(serving) as recorder, serving.load((PROMPT_TOKENS, 20), (PROMPT_TOKENS, 60)) as load:
        load.requests_per_second = LIGHT
        await load.ended(3, seconds=60)
        minima = {role: {"minReplicas": 1} for role in WORKER_ROLES}
        await serving.change({"engine": {"args": [*ENGINE_ARGUMENTS, "--seed", "1"]}, "pools": minima})
        await serving.until(
            "it says that it rolls out", lambda found: explained(found, "Progressing")[0] == "RollingOut"
        )

        async def replaced() -> bool:
            pods = [pod for role in WORKER_ROLES for pod in await ready_pods(serving, role)]
            return len(pods) == 4 and all(pod["metadata"]["labels"][REVISION] != old for pod in pods)

        await until("all four workers are of the new revision", replaced, seconds=ROLLOUT_SECONDS)
        assert recorder.counts == {"prefill": [2], "decode": [2]}
        await load.ended(3, seconds=60)
        load.requests_per_second = 0.0

    assert load.failures == []
    assert len({worker.revision for worker in recorder.workers.values()}) == 2


async def revisions(serving: Serving) -> set[str]:
    return {pod["metadata"]["labels"][REVISION] for role in WORKER_ROLES for pod in await serving.pods(role)}


async def test_a_change_of_the_gateways_template_loses_no_request(serving: Serving) -> None:
    await serving.apply_and_wait({"spec.gateway.replicas": 2})
    before = {pod["metadata"]["uid"] for pod in await serving.pods("gateway")}
    async with serving.load((PROMPT_TOKENS, 20), (PROMPT_TOKENS, 60)) as load:
        load.requests_per_second = 2 * LIGHT
        await load.ended(4, seconds=60)
        await serving.change({"gateway": {"template": {"metadata": {"annotations": {"example.com/rolled": "once"}}}}})

        async def rolled() -> bool:
            ready = {pod["metadata"]["uid"] for pod in await ready_pods(serving, "gateway")}
            return len(ready) == 2 and not ready & before

        await until("both gateways are new", rolled, seconds=ROLLOUT_SECONDS)
        await load.ended(10, seconds=60)
        load.requests_per_second = 0.0

    assert load.failures == []
    assert condition(await serving.object(), "Ready") == "True"
