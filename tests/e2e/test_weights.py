"""Weights on a claim, under a name of their own, with a worker to spare."""

import asyncio
import json

import pytest
from tests.support.operator_release import OperatorRelease
from tests.support.serving import Serving, counts, status

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

CLAIM = "weights"


async def claim(serving: Serving) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    document = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}
    apply = ("apply", "-n", serving.namespace, "-f", "-")
    await asyncio.to_thread(serving.cluster.kubectl, *apply, input=json.dumps(document))


async def test_engines_load_from_the_claim_and_a_spare_worker_stands_by(
    serving: Serving, operator: OperatorRelease
) -> None:
    await claim(serving)
    model = {"spec.model.source.persistentVolumeClaim": {"claimName": CLAIM}, "spec.model.servedName": "qwen"}
    await serving.apply_and_wait(model | {"spec.scaling.spareReplicas": 1})

    found = await serving.until("the spare worker is ready", lambda found: counts(found, "ready")[1] == 2)
    assert "1 spare" in status(found)["decision"]["message"]
    for role in ("prefill", "decode"):
        for pod in await serving.pods(role):
            (container,) = pod["spec"]["containers"]
            # An engine whose folder isn't there doesn't start.
            assert {"name": "DUET_MODEL_PATH", "value": "/models"} in container["env"]
            assert ("/models", True) in [
                (each["mountPath"], each.get("readOnly")) for each in container["volumeMounts"]
            ]
            assert 'model_name="qwen"' in await serving.metrics(pod)
