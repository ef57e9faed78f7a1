"""The operator's routing plan as this gateway holds it.

Invariant: a plan past its lease is as good as none, and an older generation never replaces a newer one in force.
"""

from __future__ import annotations

from duet_engine.protocol import RoutingPlan


class PlanHolder:
    """At most one plan; time comes in with each call."""

    def __init__(self) -> None:
        self._plan: RoutingPlan | None = None
        self._expires_at = 0.0

    def take(self, plan: RoutingPlan, now: float) -> RoutingPlan:
        """Offer a plan; returns the one in force."""
        present = self.current(now)
        if present is not None and plan.generation < present.generation:
            return present
        self._plan, self._expires_at = plan, now + plan.lease_seconds
        return plan

    def current(self, now: float) -> RoutingPlan | None:
        return self._plan if now < self._expires_at else None

    def remaining_seconds(self, now: float) -> float:
        return max(0.0, self._expires_at - now)
