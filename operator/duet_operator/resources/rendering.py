"""All manifests of one object for one pass: freshly built, with the pod templates that their Deployments carry already.

Invariant: pure; whether a pod template is a new one is decided here and nowhere else. Both pools get one revision
exactly when their engines can work together, whichever version of the operator built them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator.resources.children import plain_children
from duet_operator.resources.images import DEFAULT_PULL_POLICY, resolve
from duet_operator.resources.labels import GATEWAY_ROLE, ROLE
from duet_operator.resources.pins import in_force, is_due, kept_revision, make_pin, wanted_upgrade, with_pin
from duet_operator.resources.pools import pool_deployment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.api.effects import Pods
    from duet_operator.api.v1alpha1 import DuetDeployment, ResolvedStatus
    from duet_operator.resources.images import Images
    from duet_operator.resources.pins import Pin

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the operator's version and settings put in where a spec says nothing."""

    operator_version: str
    engine_image: str = ""
    gateway_image: str = ""
    pull_secrets: tuple[str, ...] = ()
    pull_policy: str = DEFAULT_PULL_POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolManifest:
    """A pool's Deployment as it should be, and with the pod template that it has."""

    wanted: Manifest
    kept: Manifest | None
    """None where there is no Deployment yet, or its template can't be read."""
    revision: str
    """The one of `wanted`."""
    new_revision: bool
    """It isn't the one that the Deployment has."""

    @property
    def rolls(self) -> bool:
        """To apply what is wanted replaces its pods."""
        return self.kept is not None and self.kept["spec"]["template"] != self.wanted["spec"]["template"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """Everything of one object."""

    plain: tuple[Manifest, ...]
    pools: Mapping[Role, PoolManifest]
    images: Images
    pinned: ResolvedStatus | None
    upgrade: str
    operator_version: str
    newer: bool
    """The present operator would make other pod templates than those that are kept."""


def render(deployment: DuetDeployment, pins: Mapping[Pods, Pin], defaults: Defaults) -> Rendering:
    """The manifests; `pins` are those of the Deployments that exist.

    Raises:
        InvalidTemplateError: where a template of the spec can't be merged.
    """
    return _Renderer(deployment, pins, defaults).render()


class _Renderer:
    def __init__(self, deployment: DuetDeployment, pins: Mapping[Pods, Pin], defaults: Defaults) -> None:
        self.deployment = deployment
        self.pins = pins
        self.defaults = defaults
        self.upgrade = wanted_upgrade(deployment)
        self.pinned = in_force(deployment, pins)
        self.images = resolve(
            deployment,
            self.pinned,
            engine_image=defaults.engine_image,
            gateway_image=defaults.gateway_image,
            pull_secrets=defaults.pull_secrets,
            pull_policy=defaults.pull_policy,
        )
        self.newer = False

    def render(self) -> Rendering:
        plain = tuple(self._plain(manifest) for manifest in plain_children(self.deployment, self.images))
        pools = {role: self._pool(role) for role in (Role.PREFILL, Role.DECODE)}
        return Rendering(
            plain=plain,
            pools=pools,
            images=self.images,
            pinned=self.pinned,
            upgrade=self.upgrade,
            operator_version=self.defaults.operator_version,
            newer=self.newer,
        )

    def _plain(self, manifest: Manifest) -> Manifest:
        if manifest["kind"] != "Deployment":
            return manifest
        assert manifest["metadata"]["labels"][ROLE] == GATEWAY_ROLE
        return with_pin(manifest, self._pin(manifest, "gateway", image=self.images.gateway))

    def _pool(self, role: Role) -> PoolManifest:
        spec = self.deployment.spec
        pods: Pods = "prefill" if role is Role.PREFILL else "decode"
        engines = [pin for owner, pin in self.pins.items() if owner != "gateway"]
        revision = kept_revision(engines, spec, image=self.images.engine, upgrade=self.upgrade)
        manifest = pool_deployment(self.deployment, role, self.images, kept_revision=revision)
        pin = self._pin(manifest, pods, image="" if spec.engine.image else self.images.engine)
        before = self.pins.get(pods)
        return PoolManifest(
            wanted=with_pin(manifest, pin),
            kept=None if before is None else with_pin(manifest, before),
            revision=pin.revision,
            new_revision=before is not None and before.revision != pin.revision,
        )

    def _pin(self, manifest: Manifest, pods: Pods, *, image: str) -> Pin:
        """What the Deployment carries, or something new."""
        spec, before = self.deployment.spec, self.pins.get(pods)
        fresh = make_pin(
            manifest["spec"]["template"],
            spec,
            pods,
            image=image,
            upgrade=self.upgrade,
            operator_version=self.defaults.operator_version,
        )
        if before is None or is_due(before, spec, pods, upgrade=self.upgrade):
            return fresh
        self.newer = self.newer or before.template != fresh.template
        return before
