"""Whether gateways' documents are recent: an answer that doesn't move is silence.

Invariant: age is measured by the reader's clock from the moment a document last changed, never by the writer's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import GatewayDemand


@dataclass(frozen=True, slots=True)
class Freshness:
    """Pod name -> (instance, sequence, when that was first read)."""

    marks: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)

    def observe(self, documents: Mapping[str, GatewayDemand], *, now_seconds: float) -> Freshness:
        """With what was read now, by pod name; pods that didn't answer are forgotten."""
        marks: dict[str, tuple[str, int, float]] = {}
        for pod, document in documents.items():
            known = self.marks.get(pod)
            moved = known is None or known[:2] != (document.instance_id, document.sequence)
            first_read = now_seconds if moved or known is None else known[2]
            marks[pod] = (document.instance_id, document.sequence, first_read)
        return Freshness(marks)

    def stale(self, *, now_seconds: float, limit_seconds: float) -> dict[str, float]:
        """Pods whose document hasn't changed for longer than `limit_seconds`, and for how long."""
        ages = {pod: now_seconds - first_read for pod, (_, _, first_read) in self.marks.items()}
        return {pod: age for pod, age in ages.items() if age > limit_seconds}
