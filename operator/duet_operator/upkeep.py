"""Everything of one object but its counts: what it should consist of, and that it does.

Invariant: a child that can't be brought about keeps no other from being so, and is told in words.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_operator.acting import ForeignObjectError
from duet_operator.cluster import CONFIG_MAP, DEPLOYMENT, ClusterError
from duet_operator.resources import names
from duet_operator.resources.guards import Surroundings
from duet_operator.resources.rendering import Defaults
from duet_operator.settings import package_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.acting import Children
    from duet_operator.api.effects import Pods
    from duet_operator.api.v1alpha1 import DuetDeployment
    from duet_operator.planner.types import Counts
    from duet_operator.reading import Reading
    from duet_operator.resources.pins import Pin
    from duet_operator.resources.rendering import Rendering
    from duet_operator.settings import Settings
    from duet_operator.sight import Observer
    from duet_operator.trust import IssuerWatch
    from duet_operator.world import Key

Manifest = dict[str, Any]

logger = logging.getLogger(__name__)


class Upkeep:
    """Of one object."""

    def __init__(
        self,
        key: Key,
        *,
        children: Children,
        issuers: IssuerWatch,
        settings: Settings,
        observer: Observer,
        reading: Reading,
    ) -> None:
        self._key = key
        self._children = children
        self._issuers = issuers
        self._settings = settings
        self._observer = observer
        self._reading = reading
        self._settled: dict[tuple[str, str], tuple[Manifest, Manifest]] = {}
        """Kind and name -> what a child should be, and the very object in the cache that was found to be so."""

    def render(self, deployment: DuetDeployment) -> Rendering:
        """Its manifests, with what the Deployments that exist carry already.

        Raises:
            InvalidTemplateError: where a template of the spec can't be merged.
        """
        settings = self._settings
        defaults = Defaults(
            operator_version=package_version(),
            engine_image=settings.engine_image,
            gateway_image=settings.gateway_image,
            pull_secrets=settings.image_pull_secrets,
            pull_policy=settings.image_pull_policy,
        )
        return self._reading.render(deployment, self._pins(deployment), defaults)

    def _pins(self, deployment: DuetDeployment) -> dict[Pods, Pin]:
        name, uid = self._key.name, deployment.metadata.uid
        deployments: dict[Pods, str] = {
            "prefill": names.pool_name(name, Role.PREFILL),
            "decode": names.pool_name(name, Role.DECODE),
            "gateway": names.gateway_name(name),
        }
        found = {
            pods: self._reading.pin(pods, self._observer.own(DEPLOYMENT, child, uid=uid))
            for pods, child in deployments.items()
        }
        return {pods: pin for pods, pin in found.items() if pin is not None}

    async def keep(
        self,
        deployment: DuetDeployment,
        manifests: tuple[Manifest, ...],
        pools: Mapping[Role, Manifest],
        *,
        draining: Mapping[Role, int],
        first: Counts,
    ) -> list[str]:
        """All children as they should be; what went wrong comes back in words. New pools get the `first` counts."""
        guarding = self._reading.guards(deployment, self._surroundings(), draining=draining)
        # Decode first: where only one GPU is free a decode worker can serve alone, a prefill worker can't.
        wanted = [(manifest, None) for manifest in (*guarding, *manifests)] + [
            (pools[role], first.of(role)) for role in (Role.DECODE, Role.PREFILL)
        ]
        problems: list[str] = []
        for manifest, replicas in wanted:
            try:
                await self._ensure(manifest, uid=deployment.metadata.uid, first_replicas=replicas)
            except (ClusterError, ForeignObjectError) as error:
                problems.append(str(error))
        problems += await self._prune([manifest for manifest, _ in wanted], uid=deployment.metadata.uid)
        for problem in problems:
            logger.warning("%s: %s", self._key, problem)
        return problems + self._trustless(deployment)

    async def _ensure(self, manifest: Manifest, *, uid: str, first_replicas: int | None) -> None:
        """It's as it should be; looked at closely only when either side is another one than last time."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        observed, known = self._observer.child(kind, name), self._settled.get((kind, name))
        if known is not None and known[1] is observed and known[0] == manifest:
            return
        await self._children.ensure(manifest, key=self._key, uid=uid, first_replicas=first_replicas)
        if observed is not None and self._observer.child(kind, name) is observed:
            self._settled[kind, name] = manifest, observed

    async def _prune(self, wanted: list[Manifest], *, uid: str) -> list[str]:
        keep = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
        # Not always among the wanted ones: written seldom, or not to be had at the moment.
        seldom = (names.history_name(self._key.name), names.trust_name(self._key.name))
        try:
            await self._children.prune(keep | {(CONFIG_MAP.name, name) for name in seldom}, key=self._key, uid=uid)
        except ClusterError as error:
            return [str(error)]
        return []

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            operator_namespace=self._settings.namespace,
            operator_account=self._settings.service_account,
            issuer=self._issuers.issuer,
        )

    def _trustless(self, deployment: DuetDeployment) -> list[str]:
        """What is wrong where engines can't even start, for want of a trust document."""
        name = names.trust_name(deployment.metadata.name)
        if self._issuers.issuer or self._observer.own(CONFIG_MAP, name, uid=deployment.metadata.uid):
            return []
        return ["the keys of the cluster's service-account tokens can't be read, so engines can't tell whom to believe"]
