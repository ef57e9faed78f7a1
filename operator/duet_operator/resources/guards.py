"""What stands around an object's pods: whom its engines believe, who reaches what, how many an eviction may take.

Invariant: none of it is a part of a pod template, so all of it may change at any time and rolls nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_operator.resources.budgets import disruption_budgets
from duet_operator.resources.config_maps import trust_config_map
from duet_operator.resources.network import network_policies
from duet_operator.resources.trust import subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import Role
    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.resources.trust import TokenIssuer


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What must be known of the cluster and of the operator."""

    operator_namespace: str
    operator_account: str
    """Service account of the operator; empty where it has none, so that no engine can be told to believe it."""
    issuer: TokenIssuer | None
    """None while it couldn't be read: the trust document stays as it is."""


def guards(
    deployment: DuetDeployment, surroundings: Surroundings, *, draining: Mapping[Role, int]
) -> tuple[dict[str, Any], ...]:
    """The objects to apply, before the pods that need them; `draining` counts the workers that the operator drains."""
    namespace, account = surroundings.operator_namespace, surroundings.operator_account
    operator = subject(namespace, account) if account else ""
    issuer = surroundings.issuer
    return (
        *([trust_config_map(deployment, issuer, operator=operator)] if issuer is not None else []),
        *network_policies(deployment, operator_namespace=namespace),
        *disruption_budgets(deployment, draining=draining),
    )
