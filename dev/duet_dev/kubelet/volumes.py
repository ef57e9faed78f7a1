"""A pod's volumes as folders on this machine.

Files that come from the API are written as a real kubelet writes them: into a fresh folder that a symlink
named `..data` then points to, so that a reader sees the old content or the new one, never a mixture.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from duet_dev.kubeapi import JsonObject
from duet_dev.kubelet import claims
from duet_dev.kubelet.problems import CannotStart
from duet_dev.kubelet.sources import CONFIG_MAPS, SECRETS, PodSources

FILE_MODE = 0o644
TOKEN_LIFETIME_USED = 0.8
FROM_THE_API = ("configMap", "secret", "downwardAPI", "projected")


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int = FILE_MODE


def write_atomically(folder: Path, files: dict[str, File]) -> None:
    """Make the folder show exactly these files, all changed at one instant."""
    data = folder / "..data"
    generation = int(data.readlink().name.removeprefix("..")) + 1 if data.is_symlink() else 0
    target = folder / f"..{generation}"
    for name, file in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    target.mkdir(parents=True, exist_ok=True)
    previous = data.resolve() if data.is_symlink() else None
    swap = folder / "..data_tmp"
    swap.symlink_to(target.name)
    swap.replace(data)
    wanted = {Path(name).parts[0] for name in files}
    shown = {entry.name for entry in folder.iterdir() if not entry.name.startswith("..")}
    for name in wanted - shown:
        (folder / name).symlink_to(Path("..data") / name)
    for name in shown - wanted:
        (folder / name).unlink()
    if previous:
        shutil.rmtree(previous, ignore_errors=True)


def references(volumes: list[JsonObject]) -> set[tuple[str, str]]:
    """The (resource, name) of every ConfigMap and Secret that the volumes show."""
    found: set[tuple[str, str]] = set()
    for volume in volumes:
        for source in (volume.get("projected") or {}).get("sources", [volume]):
            if config_map := source.get("configMap"):
                found.add((CONFIG_MAPS, config_map["name"]))
            if secret := source.get("secret"):
                found.add((SECRETS, secret.get("secretName") or secret["name"]))
    return found


def shows_metadata(volumes: list[JsonObject]) -> bool:
    """Whether files of the volumes repeat the pod's labels or annotations."""
    return any(
        item.get("fieldRef", {}).get("fieldPath", "").startswith(("metadata.labels", "metadata.annotations"))
        for volume in volumes
        for source in (volume.get("projected") or {}).get("sources", [volume])
        for item in source.get("downwardAPI", {}).get("items", [])
    )


def host_path(volume: str, source: JsonObject) -> Path:
    path, kind = Path(source["path"]), source.get("type")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    if kind and not path.exists():
        raise CannotStart("ContainerCreating", f"hostPath {path} of volume {volume} does not exist")
    return path


class Volumes:
    """The volumes of one pod under `folder`; claims outlive pods under `claims_folder`."""

    def __init__(self, *, sources: PodSources, folder: Path, claims_folder: Path) -> None:
        self._sources, self._folder, self._claims = sources, folder, claims_folder
        self._specs: list[JsonObject] = sources.pod["spec"].get("volumes", [])
        self.paths: dict[str, Path] = {}
        self.tokens: dict[str, str] = {}  # volume -> the token for the API server's own audience
        self.refresh_at: datetime | None = None
        self.references = references(self._specs)
        self.shows_metadata = shows_metadata(self._specs)

    async def prepare(self) -> None:
        self.paths = {spec["name"]: self._path(spec) for spec in self._specs}
        await self.refresh()

    async def refresh(self) -> None:
        """Write what comes from the API anew: contents that changed, tokens that would soon expire."""
        self.refresh_at = None
        for spec in self._specs:
            if any(kind in spec for kind in FROM_THE_API):
                await self._write(spec, self.paths[spec["name"]])

    def _path(self, spec: JsonObject) -> Path:
        if host := spec.get("hostPath"):
            return host_path(spec["name"], host)
        if claim := spec.get("persistentVolumeClaim"):
            path = claims.folder(self._claims, self._sources.namespace, claim["claimName"])
        elif "emptyDir" in spec or any(kind in spec for kind in FROM_THE_API):
            path = self._folder / str(spec["name"])
        else:
            kind = next(key for key in spec if key != "name")
            raise CannotStart("ContainerCreating", f"volume {spec['name']}: this kubelet has no {kind} volumes")
        path.mkdir(parents=True, exist_ok=True)
        return path

    async def _write(self, spec: JsonObject, folder: Path) -> None:
        files: dict[str, File] = {}
        outer = next(spec[kind] for kind in FROM_THE_API if kind in spec)
        for source in (spec.get("projected") or {}).get("sources", [spec]):
            files |= await self._files(source, outer.get("defaultMode", FILE_MODE), volume=spec["name"])
        write_atomically(folder, files)

    async def _files(self, source: JsonObject, mode: int, *, volume: str) -> dict[str, File]:
        if token := source.get("serviceAccountToken"):
            fresh = await self._sources.token(token)
            if not token.get("audience"):
                self.tokens[volume] = fresh.value
            self._renew_before(fresh.expires)
            return {token["path"]: File(fresh.value.encode(), mode)}
        if downward := source.get("downwardAPI"):
            return {
                item["path"]: File(self._downward(item).encode(), item.get("mode", mode)) for item in downward["items"]
            }
        if config_map := source.get("configMap"):
            return await self._selected(CONFIG_MAPS, config_map["name"], config_map, mode)
        if secret := source.get("secret"):
            return await self._selected(SECRETS, secret.get("secretName") or secret["name"], secret, mode)
        raise CannotStart("ContainerCreating", f"volume {volume}: unsupported projected source {list(source)}")

    def _downward(self, item: JsonObject) -> str:
        if field := item.get("fieldRef"):
            return self._sources.field(field["fieldPath"])
        return self._sources.resource(item["resourceFieldRef"], {})

    async def _selected(self, resource: str, name: str, source: JsonObject, mode: int) -> dict[str, File]:
        optional = source.get("optional", False)
        try:
            data = await self._sources.data(resource, name, optional=optional)
        except CannotStart as problem:
            raise CannotStart("ContainerCreating", f"MountVolume.SetUp failed: {problem.message}") from None
        items = source.get("items")
        if not items:
            return {key: File(value, mode) for key, value in data.items()}
        if missing := [item["key"] for item in items if item["key"] not in data and not optional]:
            raise CannotStart("ContainerCreating", f"{resource} {name} has no key {missing[0]!r}")
        return {i["path"]: File(data[i["key"]], i.get("mode", mode)) for i in items if i["key"] in data}

    def _renew_before(self, expires: datetime) -> None:
        now = datetime.now(UTC)
        due = now + min((expires - now) * TOKEN_LIFETIME_USED, timedelta(hours=24))
        self.refresh_at = min(self.refresh_at or due, due)
