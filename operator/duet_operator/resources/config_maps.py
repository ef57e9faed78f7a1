"""The ConfigMaps of a DuetDeployment: what the operator remembers of it, what engines start with, whom they believe.

Invariant: none is a part of a pod template, so writing one rolls nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Trust, gateway_audience, token_audience
from duet_operator.resources.canonical import canonical
from duet_operator.resources.names import gateway_name, history_name, live_name, trust_name
from duet_operator.resources.owner import metadata
from duet_operator.resources.pools import LIVE_ITL_KEY
from duet_operator.resources.trust import GATEWAY_TRUST_KEY, TRUST_KEY, subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.resources.trust import TokenIssuer

Manifest = dict[str, Any]

MEMORY_KEY = "memory.json"


def history_config_map(deployment: DuetDeployment, memory_document: Mapping[str, Any]) -> Manifest:
    """Where what was remembered outlives the operator."""
    data = {MEMORY_KEY: canonical(dict(memory_document))}
    return _config_map(deployment, history_name(deployment.metadata.name), data)


def read_memory_document(config_map: Mapping[str, Any] | None) -> object:
    """The document as it was written, None where there is none or it isn't JSON."""
    data = (config_map or {}).get("data") or {}
    try:
        return json.loads(data[MEMORY_KEY])
    except (KeyError, TypeError, ValueError):
        return None


def live_config_map(deployment: DuetDeployment) -> Manifest:
    """What a new engine starts with until a gateway or the operator pushes its knobs."""
    data = {LIVE_ITL_KEY: str(deployment.spec.slo.itl_milliseconds)}
    return _config_map(deployment, live_name(deployment.metadata.name), data)


def trust_config_map(deployment: DuetDeployment, issuer: TokenIssuer, *, operator: str) -> Manifest:
    """Whom the object's engines believe, its gateway and the operator, and whom its gateways do, the operator alone.

    `operator` may be empty.
    """
    name, namespace = deployment.metadata.name, deployment.metadata.namespace
    enabled = deployment.spec.gateway.enabled
    gateways = (subject(namespace, gateway_name(name)),) if enabled else ()
    operators = (operator,) if operator else ()
    engines = _trust(issuer, audience=token_audience(namespace, name), callers=gateways + operators)
    documents = {TRUST_KEY: engines.model_copy(update={"open_requests": not enabled})}
    if enabled:
        documents[GATEWAY_TRUST_KEY] = _trust(issuer, audience=gateway_audience(namespace, name), callers=operators)
    return _config_map(deployment, trust_name(name), {key: each.write().decode() for key, each in documents.items()})


def _trust(issuer: TokenIssuer, *, audience: str, callers: tuple[str, ...]) -> Trust:
    keys = tuple(sorted(issuer.keys, key=lambda key: str(key.get("kid", ""))))
    return Trust(audience=audience, issuer=issuer.issuer, keys=keys, callers=callers)


def _config_map(deployment: DuetDeployment, name: str, data: dict[str, str]) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(deployment, name), "data": data}
