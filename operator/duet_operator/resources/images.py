"""Which images pods run: the one place that names defaults.

Invariant: what a DuetDeployment once ran with is kept (`status.resolved`), so a new operator version rolls no pods by
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetDeployment

DEFAULT_ENGINE_IMAGE = "ghcr.io/duetserve/duet-engine:0.5.23-duet0.1.0"
DEFAULT_GATEWAY_IMAGE = "ghcr.io/duetserve/duet-gateway:0.1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one DuetDeployment."""

    engine: str
    gateway: str


def resolve(deployment: DuetDeployment, *, engine_image: str = "", gateway_image: str = "") -> Images:
    """The images to run: the spec's, else the pinned ones, else the operator's settings, else the defaults."""
    pinned = deployment.status.resolved
    return Images(
        engine=(
            deployment.spec.engine.image
            or (pinned.engine_image if pinned else None)
            or engine_image
            or DEFAULT_ENGINE_IMAGE
        ),
        gateway=(pinned.gateway_image if pinned else None) or gateway_image or DEFAULT_GATEWAY_IMAGE,
    )
