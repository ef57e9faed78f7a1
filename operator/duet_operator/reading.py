"""What an object asks for, as read and rendered last: everything of a pass that depends on manifests alone.

Invariant: pure functions and their last results, nothing else. The cache holds another manifest whenever anything of an
object or a child has changed; manifests of children are made anew only where more than numbers in its status did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_operator.api.v1alpha1 import DuetStatus, parse
from duet_operator.latest import Latest
from duet_operator.planner.spec import plan_spec
from duet_operator.resources.guards import guards
from duet_operator.resources.pins import read_pin
from duet_operator.resources.rendering import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_engine.protocol import Role
    from duet_operator.api.effects import Pods
    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.resources.guards import Surroundings
    from duet_operator.resources.pins import Pin
    from duet_operator.resources.rendering import Defaults, Rendering

Manifest = dict[str, Any]


class Reading:
    """Of one object. Each function is the one of its name, and raises what that raises."""

    def __init__(self) -> None:
        self.parse = Latest(parse)
        self.plan_spec = Latest(plan_spec)
        self._render = Latest(render)
        self._guards = Latest(guards)
        self._pins: dict[Pods, Latest[[Mapping[str, Any] | None], Pin | None]] = {}
        self._lasting = Latest(_without_reports)

    def render(self, deployment: DuetDeployment, pins: Mapping[Pods, Pin], defaults: Defaults) -> Rendering:
        """The manifests of its children."""
        return self._render(self._lasting(deployment), pins, defaults)

    def guards(
        self, deployment: DuetDeployment, surroundings: Surroundings, *, draining: Mapping[Role, int]
    ) -> tuple[Manifest, ...]:
        """The manifests of what guards its children."""
        return self._guards(self._lasting(deployment), surroundings, draining=draining)

    def pin(self, pods: Pods, deployment: Mapping[str, Any] | None) -> Pin | None:
        """What the Deployment of these pods carries."""
        return self._pins.setdefault(pods, Latest(read_pin))(deployment)


def _without_reports(deployment: DuetDeployment) -> DuetDeployment:
    """The object with nothing of its status but what children are made from: numbers in it change all the time."""
    return deployment.model_copy(update={"status": DuetStatus(resolved=deployment.status.resolved)})
