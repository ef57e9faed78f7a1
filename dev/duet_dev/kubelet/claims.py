"""PersistentVolumeClaims as folders: a default storage class and the volumes that its claims ask for."""

import logging
import shutil
from collections.abc import Awaitable
from pathlib import Path

from duet_dev.kubeapi import UNAVAILABLE, Api, ApiError, JsonObject

CLAIMS = "claims"  # the folder under the kubelet's root
STORAGE_CLASS = "local-folders"
PROVISIONER = "duetserve.io/local-folders"
STORAGE_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
VOLUMES = "/api/v1/persistentvolumes"
ALREADY_EXISTS, NOT_FOUND = 409, 404

log = logging.getLogger(__name__)


def folder(claims: Path, namespace: str, name: str) -> Path:
    """Where a claim's files lie, for as long as the claim exists."""
    return claims / namespace / name


def volume_for(claim: JsonObject, path: Path) -> JsonObject:
    """A volume that only this claim can bind."""
    metadata, spec = claim["metadata"], claim["spec"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "accessModes": spec["accessModes"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "claimRef": reference | {key: metadata[key] for key in ("namespace", "name", "uid")},
            "hostPath": {"path": str(path)},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
        },
    }


class Provisioner:
    def __init__(self, *, api: Api, claims: Path) -> None:
        self._api, self._claims = api, claims

    async def announce(self) -> None:
        """Make the storage class that a claim without one gets."""
        annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
        item = {"metadata": {"name": STORAGE_CLASS, "annotations": annotations}, "provisioner": PROVISIONER}
        await self._ignoring(ALREADY_EXISTS, self._api.post(STORAGE_CLASSES, item))

    async def run(self) -> None:
        """Give every claim of the storage class a volume and take it away with the claim, for ever."""
        async for event in self._api.watch("/api/v1/persistentvolumeclaims"):
            claim = event.object
            if claim["spec"].get("storageClassName") != STORAGE_CLASS:
                continue
            try:
                await (self._remove(claim) if event.kind == "DELETED" else self._provide(claim))
            except UNAVAILABLE as error:
                log.warning("claim %s: %s", claim["metadata"]["name"], error)

    async def _provide(self, claim: JsonObject) -> None:
        if not claim["spec"].get("volumeName"):
            volume = volume_for(claim, self._folder(claim))
            await self._ignoring(ALREADY_EXISTS, self._api.post(VOLUMES, volume))

    async def _remove(self, claim: JsonObject) -> None:
        shutil.rmtree(self._folder(claim), ignore_errors=True)
        path = f"{VOLUMES}/pvc-{claim['metadata']['uid']}"
        await self._ignoring(NOT_FOUND, self._api.delete(path, {}))

    def _folder(self, claim: JsonObject) -> Path:
        return folder(self._claims, claim["metadata"]["namespace"], claim["metadata"]["name"])

    @staticmethod
    async def _ignoring(status: int, call: Awaitable[JsonObject]) -> None:
        try:
            await call
        except ApiError as error:
            if error.status != status:
                raise
