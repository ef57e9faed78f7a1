"""What a Deployment says of itself.

Invariant: pure; a status that was written for another spec than the present one says nothing.
"""

from __future__ import annotations

from typing import Any

from duet_operator.resources.pools import RELOCATION_ANNOTATION

Manifest = dict[str, Any]


def observed(deployment: Manifest) -> bool:
    """Whether its controller has seen its present spec."""
    status = deployment.get("status") or {}
    return bool(status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0))


def steady(deployment: Manifest, *, replicas: int, pods: int) -> bool:
    """Whether a lower count takes the pods that are meant: it's still `replicas`, and all pods are of one template.

    While two templates' pods are there, a lower count takes some from each, whatever their readiness and costs. With
    fewer `pods` than `replicas` its controller must know of exactly as many: else some that runs was never seen here.
    """
    status = deployment.get("status") or {}
    present = status.get("replicas", 0)
    unchanged = deployment["spec"].get("replicas", 1) == replicas and observed(deployment)
    return unchanged and status.get("updatedReplicas", 0) == present and (pods >= replicas or pods == present)


def base_replicas(deployment: Manifest) -> int:
    """Its count without successors that are only there until their predecessors have left."""
    replicas = int(deployment["spec"].get("replicas", 1))
    note = (deployment["metadata"].get("annotations") or {}).get(RELOCATION_ANNOTATION, "")
    base, _, most = note.partition("/")
    # A count outside of the note is somebody else's, or older than the note.
    if base.isdigit() and most.isdigit() and int(base) < replicas <= int(most):
        return int(base)
    return replicas
