"""Pod templates outlive the operator that made them: each Deployment carries the one it was given, and from what.

Invariant: a template is made anew only where the spec changed in a part that rolls these pods, or where the object's
`duetserve.io/upgrade` annotation has a value that wasn't carried out yet. So another version of the operator, whatever
it would derive differently, rolls nothing, and neither does a lost status.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_operator.api.effects import SHARED, parts, rolling_paths, same_parts
from duet_operator.api.v1alpha1 import ResolvedStatus
from duet_operator.resources.canonical import canonical, digest
from duet_operator.resources.labels import REVISION, TEMPLATE

if TYPE_CHECKING:
    from duet_operator.api.effects import Pods
    from duet_operator.api.v1alpha1 import DuetDeployment, DuetSpec

Manifest = dict[str, Any]

UPGRADE_ANNOTATION = "duetserve.io/upgrade"
"""On a DuetDeployment: a value not seen before moves its pod templates to what the present operator derives, once."""
PIN_ANNOTATION = "duetserve.io/pinned-template"
"""On a Deployment: its pod template and what that was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A pod template and what it was made from."""

    template: Mapping[str, Any]
    parts: Mapping[str, Any]
    """The rolling parts of the spec by their paths."""
    image: str = ""
    """The image that the operator chose; empty where the spec names one."""
    upgrade: str = ""
    operator_version: str = ""

    @property
    def revision(self) -> str:
        """The revision that its pods carry."""
        return str(self.template["metadata"].get("labels", {}).get(REVISION, ""))


def read_pin(deployment: Mapping[str, Any] | None) -> Pin | None:
    """What a Deployment carries; None for none, and for what can't be read."""
    annotations = ((deployment or {}).get("metadata") or {}).get("annotations") or {}
    try:
        document = json.loads(annotations[PIN_ANNOTATION])
        template, parts_ = document["template"], document["parts"]
        told = {name: str(document.get(name, "")) for name in ("image", "upgrade")}
        if not isinstance(template["metadata"], dict) or not isinstance(parts_, dict):
            return None
        return Pin(template=template, parts=parts_, operator_version=str(document.get("operatorVersion", "")), **told)
    except (KeyError, TypeError, ValueError):
        return None


def make_pin(
    template: Mapping[str, Any], spec: DuetSpec, pods: Pods, *, image: str, upgrade: str, operator_version: str
) -> Pin:
    """A new template with what it's made from; its pods are told from older ones by a label."""
    metadata = template["metadata"]
    labels = {**metadata.get("labels", {}), TEMPLATE: digest(template)}
    return Pin(
        template={**template, "metadata": {**metadata, "labels": labels}},
        parts=parts(spec, rolling_paths(pods)),
        image=image,
        upgrade=upgrade,
        operator_version=operator_version,
    )


def is_due(pin: Pin, spec: DuetSpec, pods: Pods, *, upgrade: str) -> bool:
    """Whether the template must be made anew."""
    return (upgrade != "" and pin.upgrade != upgrade) or not same_parts(pin.parts, spec, rolling_paths(pods))


def with_pin(manifest: Manifest, pin: Pin) -> Manifest:
    """The Deployment with the template of the pin, and the pin."""
    document = {
        "template": pin.template,
        "parts": pin.parts,
        "image": pin.image,
        "upgrade": pin.upgrade,
        "operatorVersion": pin.operator_version,
    }
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), PIN_ANNOTATION: canonical(document)}
    return {
        **manifest,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**manifest["spec"], "template": pin.template},
    }


def kept_revision(pins: Iterable[Pin], spec: DuetSpec, *, image: str, upgrade: str) -> str | None:
    """The revision of a pool whose engines are as they should be: the other pool's must have the same, to pair."""
    for pin in pins:
        wanted = not upgrade or pin.upgrade == upgrade
        same_image = spec.engine.image is not None or pin.image == image
        if wanted and same_image and pin.revision and same_parts(pin.parts, spec, SHARED):
            return pin.revision
    return None


def wanted_upgrade(deployment: DuetDeployment) -> str:
    """The value of the annotation; one that was taken away stays wanted."""
    remembered = deployment.status.resolved
    annotation = deployment.metadata.annotations.get(UPGRADE_ANNOTATION, "")
    return annotation or (remembered.upgrade if remembered else None) or ""


def in_force(deployment: DuetDeployment, pins: Mapping[Pods, Pin]) -> ResolvedStatus | None:
    """The derived values to go on with: what the Deployments carry, else what the status remembers.

    None where there is nothing yet, and where an upgrade asks for new ones.
    """
    upgrade = wanted_upgrade(deployment)
    remembered = deployment.status.resolved
    if remembered is not None and upgrade and remembered.upgrade != upgrade:
        remembered = None
    carried = {pods: pin for pods, pin in pins.items() if not upgrade or pin.upgrade == upgrade}
    if not carried:
        return remembered
    engines = [pin for pods, pin in carried.items() if pods != "gateway"]
    gateway = carried.get("gateway")
    known = remembered or ResolvedStatus()
    return known.model_copy(
        update={
            "operator_version": next(iter(carried.values())).operator_version or known.operator_version,
            "engine_image": next((pin.image for pin in engines if pin.image), None) or known.engine_image,
            "gateway_image": (gateway.image if gateway else None) or known.gateway_image,
            "upgrade": upgrade or None,
        }
    )
