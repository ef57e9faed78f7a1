"""Everything that a DuetDeployment owns but the pools, whose counts need care, and the planner's memory.

Invariant: the manifests may be applied in this order at any time, and as often as wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_operator.resources.config_maps import live_config_map
from duet_operator.resources.gateway import gateway_manifests

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.resources.images import Images


def plain_children(deployment: DuetDeployment, images: Images) -> tuple[dict[str, Any], ...]:
    """The objects to apply as they are, before the pools.

    Raises:
        InvalidTemplateError: where a template of the spec can't be merged.
    """
    return (live_config_map(deployment), *gateway_manifests(deployment, images))
