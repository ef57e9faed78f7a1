"""An object as parsed and rendered last, for as long as what that was made from stays the same.

Invariant: what comes back equals what `parse` and `render` would return, and is never changed by who gets it. Both are
pure, and at rest they would be most of what a pass costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_operator.api.v1alpha1 import parse
from duet_operator.resources.rendering import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.api.effects import Pods
    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.resources.pins import Pin
    from duet_operator.resources.rendering import Defaults, Rendering

Manifest = dict[str, Any]


class Reading:
    """Of one object."""

    def __init__(self) -> None:
        self._parsed: tuple[Manifest, DuetDeployment] | None = None
        self._rendered: tuple[DuetDeployment, Mapping[Pods, Pin], Defaults, Rendering] | None = None

    def parse(self, duet: Manifest) -> DuetDeployment:
        """The object of a manifest; the cache holds another manifest whenever anything of it has changed.

        Raises:
            InvalidObjectError: as `parse`.
        """
        if self._parsed is None or self._parsed[0] is not duet:
            self._parsed = duet, parse(duet)
        return self._parsed[1]

    def render(self, deployment: DuetDeployment, pins: Mapping[Pods, Pin], defaults: Defaults) -> Rendering:
        """Its manifests.

        Raises:
            InvalidTemplateError: as `render`.
        """
        known = self._rendered
        if known is None or known[0] is not deployment or known[1] != pins or known[2] != defaults:
            known = self._rendered = deployment, pins, defaults, render(deployment, pins, defaults)
        return known[3]
