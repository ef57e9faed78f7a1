"""Names of the objects that belong to a DuetDeployment.

Invariant: every name and label value fits in 63 characters and is unique to its object: one too long is cut and marked
with a hash of the whole.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_engine.protocol import Role

LONGEST = 63
HASH_CHARACTERS = 8


def pool_name(name: str, role: Role) -> str:
    """Deployment and PodDisruptionBudget of a pool."""
    return _child(name, f"-{role.value}")


def gateway_name(name: str) -> str:
    """Deployment, ServiceAccount, RoleBinding, NetworkPolicy and PodDisruptionBudget of the gateway."""
    return _child(name, "-gateway")


def service_name(name: str) -> str:
    """The Service that users call."""
    return _child(name, "")


def history_name(name: str) -> str:
    """ConfigMap of the planner's memory."""
    return _child(name, "-duet-history")


def live_name(name: str) -> str:
    """ConfigMap of settings that new engine pods start with and that roll none."""
    return _child(name, "-duet-live")


def trust_name(name: str) -> str:
    """ConfigMap of whom the engines believe."""
    return _child(name, "-duet-trust")


def engines_name(name: str) -> str:
    """NetworkPolicy of both pools."""
    return _child(name, "-engines")


def label_value(name: str) -> str:
    """The object's name as a label's value."""
    return _child(name, "")


def _child(name: str, suffix: str) -> str:
    if len(name) + len(suffix) <= LONGEST:
        return name + suffix
    mark = "-" + hashlib.sha256(name.encode()).hexdigest()[:HASH_CHARACTERS]
    return name[: LONGEST - len(suffix) - len(mark)].rstrip("-.") + mark + suffix
