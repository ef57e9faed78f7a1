"""Who may open a connection to whom: one NetworkPolicy before the engines, one before the gateway.

Invariant: only what comes in is limited, so weights, names and whatever else a pod fetches are never cut off. Policies
add up: one that somebody puts beside these allows more, such as Prometheus. Whoever gets in must still prove itself.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from duet_operator.resources.labels import GATEWAY_ROLE, NAME, OWNER, ROLE, selector
from duet_operator.resources.names import engines_name, gateway_name, label_value
from duet_operator.resources.owner import metadata

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetDeployment

Manifest = dict[str, Any]

OPERATOR_APPLICATION = "duet-operator"
"""`app.kubernetes.io/name` of the operator's pods, by its chart."""
ENGINE_ROLES = ["prefill", "decode"]


def network_policies(deployment: DuetDeployment, *, operator_namespace: str) -> tuple[Manifest, ...]:
    """The engines' policy, and the gateway's where there is one."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
        "podSelector": {"matchLabels": {NAME: OPERATOR_APPLICATION}},
    }
    policies = [_engines(deployment, operator)]
    if deployment.spec.gateway.enabled:
        policies.append(_gateway(deployment, operator))
    return tuple(policies)


def _engines(deployment: DuetDeployment, operator: Manifest) -> Manifest:
    name = deployment.metadata.name
    if deployment.spec.gateway.enabled:
        callers: list[Manifest] = [{"podSelector": {"matchLabels": selector(name, GATEWAY_ROLE)}}]
        ports = [_port("http")]
    else:
        # Whichever router the user runs here; it names bootstrap ports to decode workers, and may ask them itself.
        callers, ports = [{"podSelector": {}}], [_port("http"), _port("bootstrap")]
    engines = {
        "matchLabels": {OWNER: label_value(name)},
        "matchExpressions": [{"key": ROLE, "operator": "In", "values": list(ENGINE_ROLES)}],
    }
    # KV caches travel on ports that the transfer backends choose as they start.
    among_engines = {"from": [{"podSelector": engines}]}
    ingress = [among_engines, {"from": callers, "ports": ports}, {"from": [operator], "ports": [_port("http")]}]
    return _policy(deployment, engines_name(name), pods=copy.deepcopy(engines), ingress=ingress)


def _gateway(deployment: DuetDeployment, operator: Manifest) -> Manifest:
    name = deployment.metadata.name
    ingress = [{"ports": [_port("http")]}, {"from": [copy.deepcopy(operator)], "ports": [_port("admin")]}]
    return _policy(deployment, gateway_name(name), pods={"matchLabels": selector(name, GATEWAY_ROLE)}, ingress=ingress)


def _policy(deployment: DuetDeployment, name: str, *, pods: Manifest, ingress: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployment, name),
        "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def _port(name: str) -> Manifest:
    return {"port": name, "protocol": "TCP"}
