"""Each CEL rule on the real API server: a good object accepted, a bad one refused with the field and the fix named.

Rules over fields that nothing serves yet are tried on a second definition, in which those fields are served already.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.support.crd_server import CrdServer
from tests.support.duet_objects import CelRule, Patch, beside, cel_rules, minimal, patched

from duet_dev.cluster import Cluster
from duet_operator.api.crd import custom_resource_definition
from duet_operator.api.model import RESERVED_ENVIRONMENT
from duet_operator.api.v1alpha1 import GROUP, LONGEST_NAME

pytestmark = pytest.mark.apiserver

LATER_GROUP = "later.duetserve.io"
NOW = custom_resource_definition()
LATER = beside(custom_resource_definition(refuse_unsupported=False), LATER_GROUP)

POOLS = ("prefill", "decode")
WITHOUT_GATEWAY = {"spec.gateway.enabled": False, "spec.pools.prefill.minReplicas": 1}
API_KEYS = {"spec.gateway.apiKeys": {"secretName": "keys"}}
CLASSES = {"spec.slo.classes": [{"name": "batch", "weight": 1}]}
NIGHT = {"cron": "0 22 * * MON-FRI", "timeZone": "Europe/Berlin", "durationSeconds": 3600}


@dataclass(frozen=True, slots=True)
class Case:
    """One rule, found by the field it blames and words of its message."""

    field: str
    words: str
    good: Patch
    bad: Patch

    def matches(self, rule: CelRule) -> bool:
        return rule.field == self.field and self.words in rule.message

    def __str__(self) -> str:
        return f"{self.field} {self.words}"


def _cases_of_gpu(gpu: str) -> Iterator[Case]:
    mig = {f"{gpu}.sharing": "MIG"}
    mps = {f"{gpu}.sharing": "MPS", f"{gpu}.mpsPercent": 50}
    yield Case(f"{gpu}.migProfile", "is required", mig | {f"{gpu}.migProfile": "3g.40gb"}, mig)
    yield Case(
        f"{gpu}.migProfile", "needs sharing", mig | {f"{gpu}.migProfile": "3g.40gb"}, {f"{gpu}.migProfile": "3g.40gb"}
    )
    yield Case(f"{gpu}.mpsPercent", "is required", mps, {f"{gpu}.sharing": "MPS"})
    yield Case(f"{gpu}.mpsPercent", "needs sharing", mps, {f"{gpu}.mpsPercent": 50})
    yield Case(f"{gpu}.mpsMemory", "needs sharing", mps | {f"{gpu}.mpsMemory": "20Gi"}, {f"{gpu}.mpsMemory": "20Gi"})
    yield Case(
        f"{gpu}.claimTemplate",
        "not both",
        {f"{gpu}.claimTemplate": "slice"},
        {f"{gpu}.claimTemplate": "slice", f"{gpu}.resourceName": "nvidia.com/gpu"},
    )


def _cases_of_pool(pool: str) -> Iterator[Case]:
    path = f"spec.pools.{pool}"
    bounds = {f"{path}.minReplicas": 2, f"{path}.maxReplicas": 4}
    manual = {"spec.scaling.mode": "Manual"}
    yield Case(f"{path}.minReplicas", "must not exceed", {f"{path}.minReplicas": 8}, {f"{path}.minReplicas": 9})
    yield Case(
        f"{path}.replicas",
        "must lie between",
        bounds | manual | {f"{path}.replicas": 4},
        bounds | manual | {f"{path}.replicas": 1},
    )
    yield Case(f"{path}.replicas", "needs spec.scaling.mode", manual | {f"{path}.replicas": 3}, {f"{path}.replicas": 3})
    yield Case(
        f"{path}.tensorParallelSize",
        "must be 1 with sharing MIG",
        {f"{path}.gpu": {"sharing": "MIG", "migProfile": "3g.40gb"}, "spec.engine.tensorParallelSize": 2}
        | {f"{path}.tensorParallelSize": 1},
        {f"{path}.gpu": {"sharing": "MIG", "migProfile": "3g.40gb"}, "spec.engine.tensorParallelSize": 2},
    )
    yield Case(
        "spec.scaling.schedule",
        f"{pool}Min must not exceed",
        {"spec.scaling.schedule": [NIGHT | {f"{pool}Min": 8}]},
        {"spec.scaling.schedule": [NIGHT | {f"{pool}Min": 9}]},
    )
    yield from _cases_of_gpu(f"{path}.gpu")


CASES = [
    *(case for pool in POOLS for case in _cases_of_pool(pool)),
    Case("", "metadata.name", {"metadata.name": "a" * LONGEST_NAME}, {"metadata.name": "a" * (LONGEST_NAME + 1)}),
    Case(
        "spec.model.revision",
        "is one of the Hugging Face hub",
        {"spec.model.revision": "main"},
        {"spec.model.revision": "main", "spec.model.source": {"image": {"reference": "models/qwen:1"}}},
    ),
    Case(
        "spec.model.source",
        "exactly one of",
        {"spec.model.source": {"persistentVolumeClaim": {"claimName": "weights"}}},
        {"spec.model.source": {"persistentVolumeClaim": {"claimName": "weights"}, "image": {"reference": "a:1"}}},
    ),
    Case(
        "spec.model.id",
        "comes from the Hugging Face hub",
        {"spec.model": {"id": "/opt/model", "source": {"persistentVolumeClaim": {"claimName": "weights"}}}},
        {"spec.model": {"id": "/opt/model", "revision": "main", "source": {"huggingFace": {}}}},
    ),
    Case(
        "spec.model.source.persistentVolumeClaim.path",
        "stay inside the volume",
        {"spec.model.source.persistentVolumeClaim": {"claimName": "weights", "path": "qwen3/..8b"}},
        {"spec.model.source.persistentVolumeClaim": {"claimName": "weights", "path": "qwen3/../../etc"}},
    ),
    Case(
        "spec.model.source.image.path",
        "stay inside the image",
        {"spec.model.source.image": {"reference": "models/qwen:1", "path": "qwen3"}},
        {"spec.model.source.image": {"reference": "models/qwen:1", "path": ".."}},
    ),
    Case(
        "spec.engine.env[].valueFrom",
        "not both",
        {"spec.engine.env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]},
        {"spec.engine.env": [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]},
    ),
    Case(
        "spec.engine.env[].name",
        "the operator sets itself",
        {"spec.engine.env": [{"name": "DUET_OWN", "value": "1"}]},
        {"spec.engine.env": [{"name": RESERVED_ENVIRONMENT[0], "value": "1"}]},
    ),
    Case(
        "spec.pools.prefill.gpu.pricePerHourMilli",
        "belong together",
        {f"spec.pools.{pool}.gpu.pricePerHourMilli": 2500 for pool in POOLS},
        {"spec.pools.decode.gpu.pricePerHourMilli": 2500},
    ),
    Case(
        "spec.scaling.scaleDown.stabilizationSeconds",
        "must be 0 or at least",
        {"spec.scaling.intervalSeconds": 60, "spec.scaling.scaleDown.stabilizationSeconds": 60},
        {"spec.scaling.intervalSeconds": 60, "spec.scaling.scaleDown.stabilizationSeconds": 59},
    ),
    Case(
        "spec.scaling.schedule[]",
        "prefillMin or decodeMin",
        {"spec.scaling.schedule": [NIGHT | {"decodeMin": 2}]},
        {"spec.scaling.schedule": [NIGHT]},
    ),
    Case(
        "spec.rollout.maxUnavailable",
        "must be 1 or more",
        {"spec.rollout": {"maxSurge": 1, "maxUnavailable": 0}},
        {"spec.rollout": {"maxSurge": 0, "maxUnavailable": 0}},
    ),
    Case(
        "spec.gateway.tls",
        "needs the gateway",
        {"spec.gateway.tls": {"secretName": "tls"}},
        WITHOUT_GATEWAY | {"spec.gateway.tls": {"secretName": "tls"}},
    ),
    Case("spec.gateway.apiKeys", "needs the gateway", API_KEYS, WITHOUT_GATEWAY | API_KEYS),
    Case(
        "spec.pools.prefill.minReplicas",
        "prompts would have no place",
        {"spec.deflection.mode": "Off", "spec.pools.prefill.minReplicas": 1},
        {"spec.deflection.mode": "Off"},
    ),
    Case(
        "spec.pools.decode.minReplicas",
        "only the gateway can hold",
        {"spec.pools.decode.minReplicas": 0},
        WITHOUT_GATEWAY | {"spec.pools.decode.minReplicas": 0},
    ),
    Case(
        "spec.gateway.hold",
        "waking requests would time out",
        {"spec.pools.decode.minReplicas": 0, "spec.scaling.coldStartSeconds": 300},
        {"spec.pools.decode.minReplicas": 0, "spec.scaling.coldStartSeconds": 301},
    ),
    Case(
        "spec.scaling.maxGPUs",
        "least workers",
        {"spec.scaling.maxGPUs": 6, "spec.engine.tensorParallelSize": 2, "spec.pools.prefill.minReplicas": 1}
        | {"spec.pools.decode.tensorParallelSize": 4},
        {"spec.scaling.maxGPUs": 5, "spec.engine.tensorParallelSize": 2, "spec.pools.prefill.minReplicas": 1}
        | {"spec.pools.decode.tensorParallelSize": 4},
    ),
    Case(
        "spec.scaling.schedule",
        "more GPUs than",
        {"spec.scaling.maxGPUs": 5, "spec.scaling.schedule": [NIGHT | {"prefillMin": 3, "decodeMin": 2}]},
        {"spec.scaling.maxGPUs": 4, "spec.scaling.schedule": [NIGHT | {"prefillMin": 3, "decodeMin": 2}]},
    ),
    Case(
        "spec.scaling.spareReplicas",
        "no worker is left",
        {"spec.scaling.spareReplicas": 2, "spec.pools.decode.maxReplicas": 3},
        {"spec.scaling.spareReplicas": 3, "spec.pools.decode.maxReplicas": 3},
    ),
    Case("spec.slo.classes", "whose keys say", CLASSES | API_KEYS, CLASSES),
    Case(
        "spec.drain.timeoutSeconds",
        "at least twice",
        {"spec.drain.timeoutSeconds": 10},
        {"spec.drain.timeoutSeconds": 9},
    ),
]

MIG = {"sharing": "MIG", "migProfile": "3g.40gb"}
MPS = {"sharing": "MPS", "mpsPercent": 50, "mpsMemory": "20Gi"}

UNSUPPORTED: dict[str, Patch] = {
    **{f"spec.pools.{pool}.gpu.type": {f"spec.pools.{pool}.gpu.type": "H100"} for pool in POOLS},
    **{f"spec.pools.{pool}.gpu.migProfile": {f"spec.pools.{pool}.gpu": MIG} for pool in POOLS},
    **{f"spec.pools.{pool}.gpu.mpsPercent": {f"spec.pools.{pool}.gpu": MPS} for pool in POOLS},
    **{f"spec.pools.{pool}.gpu.mpsMemory": {f"spec.pools.{pool}.gpu": MPS} for pool in POOLS},
    **{f"spec.pools.{pool}.gpu.claimTemplate": {f"spec.pools.{pool}.gpu.claimTemplate": "slice"} for pool in POOLS},
    **{
        f"spec.pools.{pool}.gpu.pricePerHourMilli": {f"spec.pools.{each}.gpu.pricePerHourMilli": 2500 for each in POOLS}
        for pool in POOLS
    },
    **{f"spec.pools.{pool}.gpu.sharing MIG": {f"spec.pools.{pool}.gpu": MIG} for pool in POOLS},
    **{f"spec.pools.{pool}.gpu.sharing MPS": {f"spec.pools.{pool}.gpu": MPS} for pool in POOLS},
    "spec.multiplexing": {"spec.multiplexing.mode": "Off"},
    "spec.scaling.schedule": {"spec.scaling.schedule": [NIGHT | {"decodeMin": 2}]},
    "spec.signals": {"spec.signals.prometheus": "main"},
}
"""Field, or field and value, that is refused for now -> an object that is good once it is served."""


@pytest.fixture(scope="module")
def server(apiserver: Cluster) -> Iterator[CrdServer]:
    with CrdServer(apiserver) as server:
        server.install(NOW)
        with server.installed(LATER):
            yield server


def test_each_rule_has_its_case() -> None:
    rules = list(cel_rules(LATER))
    for rule in rules:
        assert [case for case in CASES if case.matches(rule)], f"no case for: {rule}"
    for case in CASES:
        assert len([rule for rule in rules if case.matches(rule)]) == 1, f"not one rule for: {case}"
    refused = {
        rule.message.partition(" is not supported yet")[0] for rule in cel_rules(NOW) if rule.refuses_unsupported
    }
    assert refused == UNSUPPORTED.keys()


@pytest.mark.parametrize("group", [GROUP, LATER_GROUP])
def test_the_smallest_useful_object_is_accepted(server: CrdServer, group: str) -> None:
    verdict = server.verdict(minimal(group=group))
    assert verdict.accepted, verdict.message


@pytest.mark.parametrize("policy", ["Auto", "GateAndRoute", "LeastTTFT", "RoundRobin"])
def test_an_object_that_may_sleep_and_that_gates_is_accepted_now(server: CrdServer, policy: str) -> None:
    sleeping = {"spec.pools.decode.minReplicas": 0, "spec.scaling.idleSeconds": 10}
    hold = {"maxRequests": 1, "maxBytes": 1, "timeoutSeconds": 120}
    verdict = server.verdict(patched(minimal(), sleeping | {"spec.gateway.hold": hold, "spec.routing.policy": policy}))
    assert verdict.accepted, verdict.message


@pytest.mark.parametrize(("name", "accepted"), [("a", True), ("a-1", True), ("1a", False), ("a.b", False)])
def test_a_name_is_one_that_a_service_may_bear(server: CrdServer, name: str, accepted: bool) -> None:
    assert server.verdict(minimal(name=name)).accepted is accepted


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_accepts_the_good_object_and_refuses_the_bad_one(server: CrdServer, case: Case) -> None:
    rule = next(rule for rule in cel_rules(LATER) if case.matches(rule))
    good = server.verdict(patched(minimal(group=LATER_GROUP), case.good))
    assert good.accepted, good.message
    bad = server.verdict(patched(minimal(group=LATER_GROUP), case.bad))
    assert not bad.accepted
    assert rule.message in bad.message
    assert rule.field.partition("[")[0] in bad.message
    assert bad.message.count("; ") == rule.message.count("; "), f"other rules are broken too: {bad.message}"


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_nothing_serves_yet_is_refused_now_and_accepted_later(server: CrdServer, field: str) -> None:
    path = field.partition(" ")[0]
    now = server.verdict(patched(minimal(), UNSUPPORTED[field]))
    assert not now.accepted
    assert f"{path}: Forbidden: {field} is not supported yet; " in now.message
    later = server.verdict(patched(minimal(group=LATER_GROUP), UNSUPPORTED[field]))
    assert later.accepted, later.message
