"""The gateway in front of the pools: Deployment, Service, ServiceAccount and RoleBinding.

Invariant: gateway pods meet the restricted pod security standard, and their account may do in its namespace exactly
what the ClusterRole `duet-gateway` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import GATEWAY_ADMIN_PORT, GATEWAY_PORT
from duet_operator.resources.labels import GATEWAY_ROLE, labels, selector
from duet_operator.resources.names import gateway_name, service_name
from duet_operator.resources.owner import metadata
from duet_operator.resources.pod_parts import patched_template, pod_environment, probe
from duet_operator.resources.strategic_merge import merge
from duet_operator.resources.trust import gateway_mounts, gateway_variables, gateway_volumes

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.resources.images import Images

Manifest = dict[str, Any]

CONTAINER = "gateway"
CLUSTER_ROLE = "duet-gateway"
SERVICE_PORT, TLS_SERVICE_PORT = 80, 443
API_KEYS_FOLDER, TLS_FOLDER = "/var/run/secrets/duetserve.io/api-keys", "/var/run/secrets/duetserve.io/tls"
GRACE_SECONDS = 660
"""The gateway itself finishes its streams for up to 600 s after it has left the endpoints."""
UNPRIVILEGED_USER = 65532


def gateway_manifests(deployment: DuetDeployment, images: Images) -> tuple[Manifest, ...]:
    """Everything of the gateway, in the order in which to apply it; nothing where it's disabled.

    Raises:
        InvalidTemplateError: where the spec's template can't be merged.
    """
    if not deployment.spec.gateway.enabled:
        return ()
    return (
        _service_account(deployment),
        _role_binding(deployment),
        gateway_deployment(deployment, images),
        _service(deployment),
    )


def gateway_deployment(deployment: DuetDeployment, images: Images) -> Manifest:
    """The gateway's Deployment; its `replicas` are the spec's, so they are applied with it."""
    name = deployment.metadata.name
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployment, gateway_name(name), role=GATEWAY_ROLE),
        "spec": {
            "replicas": deployment.spec.gateway.replicas,
            "selector": {"matchLabels": selector(name, GATEWAY_ROLE)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": _pod_template(deployment, images),
        },
    }


def _pod_template(deployment: DuetDeployment, images: Images) -> Manifest:
    name = deployment.metadata.name
    own_labels = labels(name, GATEWAY_ROLE)
    template: Manifest = {
        "metadata": {"labels": own_labels},
        "spec": {
            **images.pod_fields(),
            "serviceAccountName": gateway_name(name),
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": UNPRIVILEGED_USER,
                "runAsGroup": UNPRIVILEGED_USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": selector(name, GATEWAY_ROLE)},
                }
            ],
            "containers": [_container(deployment, images)],
            "volumes": [*gateway_volumes(deployment), *_secret_volumes(deployment)],
        },
    }
    template = patched_template(
        template, deployment.spec.gateway.template, container=CONTAINER, path="spec.gateway.template"
    )
    return merge(template, {"metadata": {"labels": own_labels}}, path="template")


def _container(deployment: DuetDeployment, images: Images) -> Manifest:
    return {
        "name": CONTAINER,
        "image": images.gateway,
        "imagePullPolicy": images.pull_policy,
        "args": [
            *("--namespace", deployment.metadata.namespace, "--name", deployment.metadata.name),
            *(argument for secret in _secrets(deployment) for argument in (secret.option, secret.folder)),
        ],
        "env": [*pod_environment(), *gateway_variables()],
        "volumeMounts": [
            *gateway_mounts(),
            *({"name": each.volume, "mountPath": each.folder, "readOnly": True} for each in _secrets(deployment)),
        ],
        "ports": [
            {"name": "http", "containerPort": GATEWAY_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": GATEWAY_ADMIN_PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "startupProbe": probe("/healthz", port="admin", period_seconds=1, failures=60),
        "readinessProbe": probe("/readyz", port="admin", period_seconds=1, failures=2),
        "livenessProbe": probe("/healthz", port="admin", period_seconds=10, failures=6),
    }


@dataclass(frozen=True, slots=True)
class _Secret:
    """A Secret that gateway pods read, and the operator never does."""

    volume: str
    name: str
    folder: str
    option: str


def _secrets(deployment: DuetDeployment) -> list[_Secret]:
    gateway = deployment.spec.gateway
    found = []
    if gateway.api_keys is not None:
        found.append(_Secret("api-keys", gateway.api_keys.secret_name, API_KEYS_FOLDER, "--api-keys-folder"))
    if gateway.tls is not None:
        found.append(_Secret("tls", gateway.tls.secret_name, TLS_FOLDER, "--tls-folder"))
    return found


def _secret_volumes(deployment: DuetDeployment) -> list[Manifest]:
    return [{"name": each.volume, "secret": {"secretName": each.name}} for each in _secrets(deployment)]


def _service(deployment: DuetDeployment) -> Manifest:
    name, gateway = deployment.metadata.name, deployment.spec.gateway
    port = ("https", TLS_SERVICE_PORT) if gateway.tls is not None else ("http", SERVICE_PORT)
    service = gateway.service
    described = metadata(deployment, service_name(name), role=GATEWAY_ROLE)
    if service.annotations:
        described["annotations"] = dict(service.annotations)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": described,
        "spec": {
            "type": service.type,
            "selector": selector(name, GATEWAY_ROLE),
            "ports": [{"name": port[0], "port": port[1], "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _service_account(deployment: DuetDeployment) -> Manifest:
    name = deployment.metadata.name
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(deployment, gateway_name(name), role=GATEWAY_ROLE),
    }


def _role_binding(deployment: DuetDeployment) -> Manifest:
    name = deployment.metadata.name
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata(deployment, gateway_name(name), role=GATEWAY_ROLE),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CLUSTER_ROLE},
        "subjects": [
            {"kind": "ServiceAccount", "name": gateway_name(name), "namespace": deployment.metadata.namespace}
        ],
    }
