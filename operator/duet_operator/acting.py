"""Brings an object's children about: creates what is missing, applies what differs, deletes what isn't wanted.

Invariant: a child that is as it should be is not written. What belongs to somebody else is never touched: an object of
a wanted name that isn't ours stops the pass with a ForeignObjectError.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from duet_operator import ownership
from duet_operator.cluster import FIELD_MANAGER, ConflictError, kind_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from duet_operator.cluster import Cluster
    from duet_operator.world import Key, World

Manifest = dict[str, Any]

logger = logging.getLogger(__name__)


class ForeignObjectError(Exception):
    """An object of a name that we need belongs to somebody else."""


class Children:
    """Children of any DuetDeployment."""

    def __init__(self, *, cluster: Cluster, world: World) -> None:
        self._cluster = cluster
        self._world = world

    async def ensure(self, manifest: Manifest, *, key: Key, uid: str, first_replicas: int | None = None) -> None:
        """It exists as its manifest says. `first_replicas` is what a pool that isn't there yet is created with.

        Raises:
            ForeignObjectError: where an object of this name isn't ours.
            ClusterError: where the API server refuses.
        """
        manifest = ownership.stamped(manifest)
        observed = self._world.child(key, manifest["kind"], manifest["metadata"]["name"])
        if observed is None:
            await self._create(manifest, uid=uid, first_replicas=first_replicas)
            return
        if not self._ours(observed, uid):
            return
        keep_replicas = "replicas" in manifest.get("spec", {})
        if ownership.handed_over(observed, manager=FIELD_MANAGER, keep_replicas=keep_replicas) is not None:
            # The cache holds only our own entries of managedFields, and a patch must name them all.
            observed = await self._hand_over(await self._fresh(observed), keep_replicas=keep_replicas)
        if ownership.differs(manifest, observed, manager=FIELD_MANAGER):
            logger.info("%s: applying %s %s", key, manifest["kind"], manifest["metadata"]["name"])
            await self._apply(manifest, over=observed, uid=uid, first_replicas=first_replicas)

    async def _apply(self, manifest: Manifest, *, over: Manifest, uid: str, first_replicas: int | None) -> None:
        """Onto the very object that was looked at: another one of its name isn't ours to change, and where there is
        none an apply would make a pool of one worker."""
        metadata = {**manifest["metadata"], "uid": over["metadata"]["uid"]}
        try:
            self._world.put(await self._cluster.apply({**manifest, "metadata": metadata}))
        except ConflictError:
            present = await self._cluster.get(kind_of(manifest), metadata["namespace"], metadata["name"])
            if present is None:
                await self._create(manifest, uid=uid, first_replicas=first_replicas)
            elif self._ours(present, uid):
                self._world.put(present)

    async def _create(self, manifest: Manifest, *, uid: str, first_replicas: int | None) -> None:
        kind, metadata, spec = kind_of(manifest), manifest["metadata"], manifest.get("spec", {})
        logger.info("%s/%s: creating it (%s)", metadata["namespace"], metadata["name"], kind.name)
        body = manifest if first_replicas is None else {**manifest, "spec": {**spec, "replicas": first_replicas}}
        try:
            created = await self._cluster.create(body)
        except ConflictError:
            # It's there but not in the cache: too new, not ours, or without the labels that the watch asks for.
            present = await self._cluster.get(kind, metadata["namespace"], metadata["name"])
            if present is not None and self._ours(present, uid):
                await self._apply(manifest, over=present, uid=uid, first_replicas=first_replicas)
            return
        await self._hand_over(created, keep_replicas="replicas" in spec)

    def _ours(self, child: Manifest, uid: str) -> bool:
        """True: ours to change; False: on its way out, and the next pass makes a new one."""
        metadata = child["metadata"]
        if "deletionTimestamp" in metadata:
            return False
        if not ownership.controlled_by(child, uid):
            described = f"{child['kind']} {metadata['name']}"
            raise ForeignObjectError(
                f"{described} exists and doesn't belong to this object; delete or rename one of them"
            )
        return True

    async def _hand_over(self, created: Manifest, *, keep_replicas: bool) -> Manifest:
        """From now on the object is one that was applied, so later applies can take fields away."""
        while (
            entries := ownership.handed_over(created, manager=FIELD_MANAGER, keep_replicas=keep_replicas)
        ) is not None:
            metadata = created["metadata"]
            changes = {"metadata": {"managedFields": entries, "resourceVersion": metadata["resourceVersion"]}}
            try:
                created = await self._cluster.patch(kind_of(created), metadata["namespace"], metadata["name"], changes)
            except ConflictError:
                # Its controller was quicker: what it wrote belongs in the list too.
                created = await self._fresh(created)
        self._world.put(created)
        return created

    async def _fresh(self, manifest: Manifest) -> Manifest:
        """The object as the API server has it, with everybody's managed fields."""
        metadata = manifest["metadata"]
        return await self._cluster.get(kind_of(manifest), metadata["namespace"], metadata["name"]) or manifest

    async def prune(self, wanted: Collection[tuple[str, str]], *, key: Key, uid: str) -> None:
        """Delete children of ours that aren't wanted any more; `wanted` holds kinds and names."""
        for child in self._world.children(key):
            kind, metadata = child["kind"], child["metadata"]
            if (kind, metadata["name"]) in wanted or not ownership.controlled_by(child, uid):
                continue
            if "deletionTimestamp" not in metadata:
                logger.info("%s: deleting %s %s", key, kind, metadata["name"])
                await self._cluster.delete(kind_of(child), key.namespace, metadata["name"], uid=metadata.get("uid"))
