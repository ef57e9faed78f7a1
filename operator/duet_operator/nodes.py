"""Which nodes are about to go: what a person, an autoscaler or a cloud says about them.

Invariant: only names are kept, of nodes that take no pods because what runs there is to leave; a node that takes pods
again is none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DEPARTURE_TAINTS = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/spot-itn",
        "cloud.google.com/impending-node-termination",
    }
)
"""Taints that say that a node will be taken away. `kubectl cordon` and `kubectl drain` set `spec.unschedulable`."""


class Nodes:
    """Nodes that are about to go, fed by a watch."""

    def __init__(self) -> None:
        self._leaving: set[str] = set()

    @property
    def leaving(self) -> frozenset[str]:
        """Their names."""
        return frozenset(self._leaving)

    def put(self, body: Mapping[str, Any]) -> None:
        """A node as an event shows it."""
        name = body["metadata"]["name"]
        if is_leaving(body):
            self._leaving.add(name)
        else:
            self._leaving.discard(name)

    def remove(self, body: Mapping[str, Any]) -> None:
        """A node that is gone."""
        self._leaving.discard(body["metadata"]["name"])


def is_leaving(body: Mapping[str, Any]) -> bool:
    """Whether what runs on this node is to leave."""
    spec = body.get("spec") or {}
    return bool(spec.get("unschedulable")) or any(
        taint.get("key") in DEPARTURE_TAINTS and taint.get("effect") != "PreferNoSchedule"
        for taint in spec.get("taints") or ()
    )
