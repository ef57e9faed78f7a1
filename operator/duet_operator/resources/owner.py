"""The metadata that ties an object to its DuetDeployment.

Invariant: every object has exactly one owner, so deleting the DuetDeployment deletes them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_operator.api.v1alpha1 import API_VERSION, KIND
from duet_operator.resources.labels import labels

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetDeployment


def owner_reference(deployment: DuetDeployment) -> dict[str, Any]:
    """The reference that makes the garbage collector take an object along."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": deployment.metadata.name,
        "uid": deployment.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(deployment: DuetDeployment, name: str, *, role: str | None = None) -> dict[str, Any]:
    """Metadata of an object named `name` that belongs to `deployment`."""
    return {
        "name": name,
        "namespace": deployment.metadata.namespace,
        "labels": labels(deployment.metadata.name, role),
        "ownerReferences": [owner_reference(deployment)],
    }
