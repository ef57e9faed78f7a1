"""Labels on everything that the operator makes.

Invariant: `selector` is a part of `labels`, and neither ever changes for an object of a given name: a Deployment's
selector can't.
"""

from __future__ import annotations

from duet_operator.resources.names import label_value

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
MANAGED_BY = "app.kubernetes.io/managed-by"
OWNER = "duetserve.io/name"
ROLE = "duetserve.io/role"
REVISION = "duetserve.io/revision"
TEMPLATE = "duetserve.io/template"
"""On pods of every Deployment: hash of the pod template that made them."""

GATEWAY_ROLE = "gateway"


def labels(name: str, role: str | None = None) -> dict[str, str]:
    """Labels of an object of the DuetDeployment `name`, for pods and what makes them with their role."""
    common = {NAME: "duet", INSTANCE: label_value(name), MANAGED_BY: "duet-operator", OWNER: label_value(name)}
    return common if role is None else common | {ROLE: role}


def selector(name: str, role: str) -> dict[str, str]:
    """Labels by which a Deployment or a Service finds its pods."""
    return {OWNER: label_value(name), ROLE: role}
