"""How engines and gateways learn whom to believe, and how gateways prove themselves: the parts of pods for it.

Invariant: the trust document itself is no part of a pod template, so a new key or caller rolls nothing. Engine pods get
no token of the API server; gateway pods get one more, which only the engines of their own object accept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import token_audience
from duet_operator.resources.names import trust_name

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetDeployment

Manifest = dict[str, Any]

TRUST_KEY = "trust.json"
GATEWAY_TRUST_KEY = "gateway.json"
TRUST_FOLDER = "/etc/duet/trust"
LOCAL_FOLDER = "/run/duet"
GATEWAY_TOKEN_FOLDER = "/var/run/secrets/duetserve.io/engines"
TOKEN_FILE = "token"
TOKEN_SECONDS = 3600
"""The kubelet replaces a token when four fifths of its time are over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """Who signs the cluster's service-account tokens, and with which public keys."""

    issuer: str
    keys: tuple[Manifest, ...]


def subject(namespace: str, account: str) -> str:
    """A service account as its tokens name it."""
    return f"system:serviceaccount:{namespace}:{account}"


# --- engine pods ---


def engine_volumes(deployment: DuetDeployment) -> list[Manifest]:
    """The trust document, and a place for the token with which the container's own commands prove themselves."""
    return [
        {"name": "trust", "configMap": {"name": trust_name(deployment.metadata.name)}},
        {"name": "local", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]


def engine_mounts() -> list[Manifest]:
    """Where an engine finds them. Whole folders: the kubelet doesn't update single mounted files."""
    return [
        {"name": "trust", "mountPath": TRUST_FOLDER, "readOnly": True},
        {"name": "local", "mountPath": LOCAL_FOLDER},
    ]


def engine_variables() -> dict[str, str]:
    """How an engine is told of them."""
    return {
        "DUET_TRUST_FILE": f"{TRUST_FOLDER}/{TRUST_KEY}",
        "DUET_LOCAL_TOKEN_FILE": f"{LOCAL_FOLDER}/{TOKEN_FILE}",
    }


# --- gateway pods ---


def gateway_volumes(deployment: DuetDeployment) -> list[Manifest]:
    """A token for this object's engines, and whose plans to believe; a gateway serves without any plan too."""
    name = deployment.metadata.name
    audience = token_audience(deployment.metadata.namespace, name)
    token = {"audience": audience, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE}
    return [
        {"name": "engine-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "trust", "configMap": {"name": trust_name(name), "optional": True}},
    ]


def gateway_mounts() -> list[Manifest]:
    """Where a gateway finds them."""
    return [
        {"name": "engine-token", "mountPath": GATEWAY_TOKEN_FOLDER, "readOnly": True},
        {"name": "trust", "mountPath": TRUST_FOLDER, "readOnly": True},
    ]


def gateway_variables() -> list[Manifest]:
    """How a gateway is told of them."""
    return [
        {"name": "DUET_ENGINE_TOKEN_FILE", "value": f"{GATEWAY_TOKEN_FOLDER}/{TOKEN_FILE}"},
        {"name": "DUET_TRUST_FILE", "value": f"{TRUST_FOLDER}/{GATEWAY_TRUST_KEY}"},
    ]
