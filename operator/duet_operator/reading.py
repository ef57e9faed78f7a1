"""What an object asks for, as read and rendered last: everything of a pass that depends on manifests alone.

Invariant: pure functions and their last results, nothing else. The cache holds another manifest whenever anything of an
object or a child has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duet_operator.api.v1alpha1 import parse
from duet_operator.latest import Latest
from duet_operator.planner.spec import plan_spec
from duet_operator.resources.guards import guards
from duet_operator.resources.pins import read_pin
from duet_operator.resources.rendering import render

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from duet_operator.api.effects import Pods
    from duet_operator.resources.pins import Pin


class Reading:
    """Of one object. Each function is the one of its name, and raises what that raises."""

    def __init__(self) -> None:
        self.parse = Latest(parse)
        self.plan_spec = Latest(plan_spec)
        self.render = Latest(render)
        self.guards = Latest(guards)
        self._pins: dict[Pods, Latest[[Mapping[str, Any] | None], Pin | None]] = {}

    def pin(self, pods: Pods, deployment: Mapping[str, Any] | None) -> Pin | None:
        """What the Deployment of these pods carries."""
        return self._pins.setdefault(pods, Latest(read_pin))(deployment)
