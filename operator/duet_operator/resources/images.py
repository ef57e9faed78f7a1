"""Which images pods run and how they are pulled: the one place that names defaults.

Invariant: what a DuetDeployment once ran with is kept (`pins.py`), so a new operator version rolls no pods by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetDeployment, ResolvedStatus

DEFAULT_ENGINE_IMAGE = "ghcr.io/duetserve/duet-engine:0.5.23-duet0.1.0"
DEFAULT_GATEWAY_IMAGE = "ghcr.io/duetserve/duet-gateway:0.1.0"
DEFAULT_PULL_POLICY = "IfNotPresent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one DuetDeployment."""

    engine: str
    gateway: str
    pull_secrets: tuple[str, ...] = ()
    """Secrets in the DuetDeployment's namespace."""
    pull_policy: str = DEFAULT_PULL_POLICY

    def pod_fields(self) -> dict[str, Any]:
        """What a pod's spec says of pulling. Absent where there is nothing, for the account's own Secrets to count."""
        return {"imagePullSecrets": [{"name": name} for name in self.pull_secrets]} if self.pull_secrets else {}


def resolve(
    deployment: DuetDeployment,
    pinned: ResolvedStatus | None = None,
    *,
    engine_image: str = "",
    gateway_image: str = "",
    pull_secrets: tuple[str, ...] = (),
    pull_policy: str = DEFAULT_PULL_POLICY,
) -> Images:
    """The images to run: the spec's, else the pinned ones, else the operator's settings, else the defaults."""
    pinned_secrets = pinned.image_pull_secrets if pinned else None
    return Images(
        engine=(
            deployment.spec.engine.image
            or (pinned.engine_image if pinned else None)
            or engine_image
            or DEFAULT_ENGINE_IMAGE
        ),
        gateway=(pinned.gateway_image if pinned else None) or gateway_image or DEFAULT_GATEWAY_IMAGE,
        pull_secrets=pull_secrets if pinned_secrets is None else pinned_secrets,
        pull_policy=(pinned.image_pull_policy if pinned else None) or pull_policy,
    )
