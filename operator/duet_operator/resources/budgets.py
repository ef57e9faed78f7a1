"""How many pods an eviction may take: a PodDisruptionBudget for each pool and for the gateway.

Invariant: one pod at a time may be evicted beyond those that the operator itself drains, whatever the operator does; a
pod that isn't ready never holds up the drain of its node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator.resources.labels import GATEWAY_ROLE, selector
from duet_operator.resources.names import gateway_name, pool_name
from duet_operator.resources.owner import metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.api.v1alpha1 import DuetDeployment

Manifest = dict[str, Any]


def disruption_budgets(deployment: DuetDeployment, *, draining: Mapping[Role, int]) -> tuple[Manifest, ...]:
    """One for each pool, with so many workers that the operator drains, and one for the gateway where there is one.

    A draining worker isn't ready, so it uses up a budget that doesn't count it: nothing else could be evicted for as
    long as its last request takes.
    """
    name = deployment.metadata.name
    budgets = [
        _budget(deployment, pool_name(name, role), role.value, unavailable=draining.get(role, 0) + 1)
        for role in (Role.PREFILL, Role.DECODE)
    ]
    if deployment.spec.gateway.enabled:
        budgets.append(_budget(deployment, gateway_name(name), GATEWAY_ROLE, unavailable=1))
    return tuple(budgets)


def _budget(deployment: DuetDeployment, name: str, role: str, *, unavailable: int) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployment, name, role=role),
        "spec": {
            "selector": {"matchLabels": selector(deployment.metadata.name, role)},
            "maxUnavailable": unavailable,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
