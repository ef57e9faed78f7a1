"""A DuetDeployment from `kubectl apply` to `kubectl delete`."""

import json

import pytest
from tests.support.duet_objects import minimal, patched
from tests.support.operator_release import OperatorRelease
from tests.support.serving import Serving, condition, counts, status
from tests.support.waiting import until

from duet_dev.cluster import Cluster
from duet_dev.errors import DevError
from duet_dev.kubeapi import ApiError
from duet_engine.protocol import PLAN_PATH, STATE_PATH
from duet_operator.cluster import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    POD,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

GONE_SECONDS = 120.0
REQUESTS = 20


async def test_an_applied_object_gets_ready_and_answers_through_its_service(
    serving: Serving, operator: OperatorRelease
) -> None:
    await serving.apply_and_wait({"spec.pools.decode.minReplicas": 2})

    found = await serving.object()
    assert counts(found, "ready") == counts(found, "replicas") == (1, 2)
    assert len(await serving.pods("prefill")) == 1
    assert len(await serving.pods("decode")) == 2
    assert len(await serving.pods("gateway")) == 1
    for type_ in ("Accepted", "Ready", "Progressing", "ScalingActive", "SignalsFresh"):
        assert condition(found, type_) == "True", type_
    assert condition(found, "CapacityPending") == "False"

    async with serving.load((400, 20), (50, 5)) as load:
        load.requests_per_second = 4
        await load.ended(REQUESTS, seconds=120)
        load.requests_per_second = 0
    assert len(load.records) >= REQUESTS
    assert load.failures == []

    (prefill,) = await serving.pods("prefill")
    assert (await serving.engine(prefill, "state"))["ready"]
    with pytest.raises(ApiError, match="a bearer token is needed") as refused:
        await serving.engine_without_token(prefill, STATE_PATH)
    assert refused.value.status == 401

    (gateway,) = await serving.pods("gateway")
    assert (await serving.gateway(gateway, PLAN_PATH))["dispatch_share"] == 1.0, "the operator's plan was taken"
    with pytest.raises(ApiError, match="a bearer token is needed") as refused:
        await serving.change_gateway(gateway, PLAN_PATH)
    assert refused.value.status == 401

    # Of other objects it may say that their namespaces are on their way out, which is told as a refusal too.
    log = operator.log()
    own = [line for line in log.splitlines() if serving.namespace in line]
    assert own
    assert [line for line in own if "403" in line or "orbidden" in line] == []
    assert "is forbidden: User" not in log


async def test_the_columns_of_kubectl_get_say_how_it_stands_and_deleting_takes_every_child_along(
    serving: Serving,
) -> None:
    """With pools that cannot resize, so that each column has one right value however slow the machine is."""
    await serving.apply_and_wait({"spec.pools.prefill.maxReplicas": 1, "spec.pools.decode.maxReplicas": 1})
    async with serving.load() as load:
        load.requests_per_second = 2
        await serving.until("traffic is reported", lambda found: "attainment" in status(found).get("summary", {}))
        load.requests_per_second = 0

    shown = serving.cluster.kubectl("get", "duet", "-n", serving.namespace).stdout.splitlines()
    header, row = (line.split() for line in shown)
    assert " ".join(header) == "NAME READY PREFILL DECODE TTFT P95 ITL P95 ATTAINMENT DEFLECTED AGE"
    assert row[:2] == [serving.name, "True"]
    assert row[2:4] == ["1/1", "1/1"]
    wide = serving.cluster.kubectl("get", "duet", "-n", serving.namespace, "-o", "wide").stdout
    assert "REASON" in wide

    kinds = (POD, DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, ROLE_BINDING, NETWORK_POLICY, DISRUPTION_BUDGET)
    for kind in kinds:
        assert await serving.items(kind), kind.name
    await serving.delete()

    async def left() -> bool:
        found = [item for kind in (*kinds, CONFIG_MAP) for item in await serving.items(kind)]
        return not found

    await until("no child is left", left, seconds=GONE_SECONDS)


@pytest.mark.parametrize(
    ("patch", "field", "fix"),
    [
        pytest.param(
            {"spec.pools.decode.minReplicas": 9, "spec.pools.decode.maxReplicas": 5},
            "spec.pools.decode.minReplicas",
            "lower minReplicas or raise maxReplicas",
            id="fields that contradict each other",
        ),
        pytest.param(
            {"spec.signals": {"prometheus": "main"}},
            "spec.signals",
            "is not supported yet",
            id="a field that nothing serves yet",
        ),
        pytest.param(
            {"spec.slo": {"itlMilliseconds": 50}}, "spec.slo.ttftMilliseconds", "Required", id="a field left out"
        ),
    ],
)
def test_a_bad_manifest_is_refused_with_its_field_and_the_fix(
    local_cluster: Cluster,
    operator_release: OperatorRelease,
    namespace: str,
    patch: dict[str, object],
    field: str,
    fix: str,
) -> None:
    document = patched(minimal(), {**patch, "metadata.namespace": namespace})
    with pytest.raises(DevError) as refused:
        local_cluster.kubectl("apply", "-f", "-", input=json.dumps(document))
    assert field in str(refused.value)
    assert fix in str(refused.value)
