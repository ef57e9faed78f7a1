"""The ConfigMaps of a DuetDeployment: the planner's memory, and settings that engines start with.

Invariant: neither is a part of a pod template, so writing one rolls nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_operator.resources.names import history_name, live_name
from duet_operator.resources.owner import metadata
from duet_operator.resources.pools import LIVE_ITL_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.api.v1alpha1 import DuetDeployment

Manifest = dict[str, Any]


def history_config_map(deployment: DuetDeployment, data: Mapping[str, str]) -> Manifest:
    """Where what the planner remembers outlives the operator."""
    return _config_map(deployment, history_name(deployment.metadata.name), data)


def live_config_map(deployment: DuetDeployment) -> Manifest:
    """What a new engine starts with until a gateway or the operator pushes its knobs."""
    itl_milliseconds = str(deployment.spec.slo.itl_milliseconds)
    return _config_map(deployment, live_name(deployment.metadata.name), {LIVE_ITL_KEY: itl_milliseconds})


def _config_map(deployment: DuetDeployment, name: str, data: Mapping[str, str]) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(deployment, name), "data": dict(data)}
