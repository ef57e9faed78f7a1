"""DuetDeployments whose manifests tests look at, and all manifests of one."""

from typing import Any

from tests.support.duet_objects import minimal, patched

from duet_engine.protocol import Role
from duet_operator.api.v1alpha1 import DuetDeployment, parse
from duet_operator.resources.children import plain_children
from duet_operator.resources.config_maps import history_config_map
from duet_operator.resources.guards import Surroundings, guards
from duet_operator.resources.images import resolve
from duet_operator.resources.pools import pool_creation, pool_deployment
from duet_operator.resources.trust import TokenIssuer

UID = "5f1f0c3e-8c47-4f5e-9e0d-2f3b1c9a7d11"


SURROUNDINGS = Surroundings(
    operator_namespace="duet-system",
    operator_account="duet-operator",
    issuer=TokenIssuer(
        issuer="https://kubernetes.default.svc",
        keys=({"kid": "k1", "kty": "RSA", "alg": "RS256", "use": "sig", "n": "AQAB", "e": "AQAB"},),
    ),
)


def deployment(changes: dict[str, Any] | None = None, **metadata: Any) -> DuetDeployment:
    """The smallest object, with these fields changed."""
    document = patched(minimal(), changes or {})
    document["metadata"] |= {"uid": UID, "generation": 3} | metadata
    return parse(document)


FULL = deployment(
    {
        "spec.model": {
            "id": "Qwen/Qwen3-8B",
            "servedName": "qwen",
            "contextLength": 32768,
            "revision": "9c925d64d72725edaf899c6cb9c377fd0709d9c5",
            "source": {"huggingFace": {"tokenSecretRef": {"name": "hub"}, "cacheClaimName": "hub-cache"}},
        },
        "spec.engine": {
            "image": "registry.example/engine:1",
            "args": ["--mem-fraction-static", "0.85"],
            "env": [
                {"name": "NCCL_DEBUG", "value": "INFO"},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                {"name": "EMPTY"},
            ],
            "tensorParallelSize": 2,
            "transferBackend": "mooncake_tcp",
            "template": {
                "metadata": {"annotations": {"team": "serving"}},
                "spec": {
                    "nodeSelector": {"gpu": "h100"},
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                    "containers": [{"name": "engine", "resources": {"requests": {"cpu": "8"}}}],
                },
            },
        },
        "spec.pools.prefill": {
            "gpu": {"resourceName": "nvidia.com/mig-3g.40gb"},
            "tensorParallelSize": 1,
            "template": {"spec": {"containers": [{"name": "engine", "env": [{"name": "EXTRA", "value": "p"}]}]}},
        },
        "spec.drain.timeoutSeconds": 120,
        "spec.gateway": {
            "replicas": 3,
            "service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
            "template": {"spec": {"priorityClassName": "high", "containers": [{"name": "gateway", "resources": {}}]}},
        },
    },
    name="full",
    namespace="models",
)


def everything(duet: DuetDeployment) -> dict[str, dict[str, Any]]:
    """All manifests of an object by a name of their own."""
    images = resolve(duet)
    manifests = [
        *guards(duet, SURROUNDINGS, draining={Role.DECODE: 1}),
        *plain_children(duet, images),
        history_config_map(duet, {"planner": {"version": 1}}),
        *(pool_deployment(duet, role, images) for role in (Role.PREFILL, Role.DECODE)),
    ]
    named = {f"{manifest['kind']} {manifest['metadata']['name']}": manifest for manifest in manifests}
    assert len(named) == len(manifests)
    return named | {"creation": pool_creation(duet, Role.DECODE, images, replicas=3)}
