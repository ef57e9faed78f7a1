"""Files of volumes: atomic changes, tokens renewed in time, and the last lines of logs."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_dev.kubeapi import JsonObject
from duet_dev.kubelet.logs import seek_tail
from duet_dev.kubelet.problems import CannotStart
from duet_dev.kubelet.sources import CONFIG_MAPS, SECRETS, PodSources, Token
from duet_dev.kubelet.volumes import File, Volumes, references, write_atomically


def shown(folder: Path) -> dict[str, bytes]:
    """What a program finds in the folder, without the writer's own entries."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith("..")
    } | {
        f"{entry.name}/{inner.relative_to(entry)}": inner.read_bytes()
        for entry in folder.iterdir()
        if entry.is_symlink() and entry.is_dir() and not entry.name.startswith("..")
        for inner in entry.rglob("*")
        if inner.is_file()
    }


def test_all_files_change_at_one_instant(tmp_path: Path) -> None:
    write_atomically(tmp_path, {"a": File(b"1"), "deep/b": File(b"1"), "gone": File(b"1")})
    assert shown(tmp_path) == {"a": b"1", "deep/b": b"1", "gone": b"1"}
    before = (tmp_path / "..data").readlink()
    write_atomically(tmp_path, {"a": File(b"2"), "deep/b": File(b"2"), "new": File(b"2", 0o400)})
    assert shown(tmp_path) == {"a": b"2", "deep/b": b"2", "new": b"2"}
    # One symlink decides about all of them: what a reader sees is never a mixture.
    assert (tmp_path / "a").readlink() == Path("..data/a")
    assert (tmp_path / "..data").readlink() != before
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o400
    assert {entry.name for entry in tmp_path.iterdir() if entry.name.startswith("..")} == {"..data", "..1"}


def test_an_empty_volume_is_an_empty_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path, {})
    assert shown(tmp_path) == {}


def test_references_are_found_in_plain_and_projected_volumes() -> None:
    found = references(
        [
            {"name": "a", "configMap": {"name": "one"}},
            {"name": "b", "secret": {"secretName": "two"}},
            {"name": "c", "projected": {"sources": [{"configMap": {"name": "three"}}, {"secret": {"name": "four"}}]}},
            {"name": "d", "emptyDir": {}},
        ]
    )
    assert found == {(CONFIG_MAPS, "one"), (SECRETS, "two"), (CONFIG_MAPS, "three"), (SECRETS, "four")}


class FakeSources(PodSources):
    """A pod whose ConfigMaps are given and whose tokens live as long as asked for."""

    def __init__(self, volumes: list[JsonObject], maps: dict[str, dict[str, bytes]]) -> None:
        self.pod = {"metadata": {"namespace": "default"}, "spec": {"volumes": volumes}}
        self.namespace = "default"
        self._maps, self.tokens_made = maps, 0

    async def data(self, resource: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
        if name not in self._maps and not optional:
            raise CannotStart("CreateContainerConfigError", f'configmap "{name}" not found')
        return self._maps.get(name, {})

    async def token(self, source: JsonObject) -> Token:
        self.tokens_made += 1
        lifetime = timedelta(seconds=source["expirationSeconds"])
        return Token(f"token {self.tokens_made}", datetime.now(UTC) + lifetime)


def volumes_of(tmp_path: Path, sources: FakeSources) -> Volumes:
    return Volumes(sources=sources, folder=tmp_path / "volumes", claims_folder=tmp_path / "claims")


async def test_a_token_is_due_before_it_expires_and_replaced(tmp_path: Path) -> None:
    token = {"serviceAccountToken": {"path": "token", "audience": "a", "expirationSeconds": 600}}
    sources = FakeSources([{"name": "t", "projected": {"sources": [token]}}], {})
    volumes = volumes_of(tmp_path, sources)
    await volumes.prepare()
    due = volumes.refresh_at
    assert due is not None
    assert timedelta(seconds=400) < due - datetime.now(UTC) < timedelta(seconds=500)
    assert volumes.tokens == {}  # for another audience than the API server's
    await volumes.refresh()
    assert (tmp_path / "volumes" / "t" / "token").read_bytes() == b"token 2"


async def test_a_missing_config_map_holds_the_pod_unless_optional(tmp_path: Path) -> None:
    volumes = volumes_of(tmp_path, FakeSources([{"name": "c", "configMap": {"name": "late"}}], {}))
    with pytest.raises(CannotStart, match=r'MountVolume\.SetUp failed: configmap "late" not found'):
        await volumes.prepare()
    optional = FakeSources([{"name": "c", "configMap": {"name": "late", "optional": True}}], {})
    await volumes_of(tmp_path, optional).prepare()


async def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    spec = {"name": "c", "configMap": {"name": "m", "items": [{"key": "absent", "path": "x"}]}}
    with pytest.raises(CannotStart, match="has no key 'absent'"):
        await volumes_of(tmp_path, FakeSources([spec], {"m": {"there": b""}})).prepare()


async def test_unknown_kinds_of_volumes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="volume v: this kubelet has no nfs volumes"):
        await volumes_of(tmp_path, FakeSources([{"name": "v", "nfs": {}}], {})).prepare()


async def test_a_claim_outlives_its_pod(tmp_path: Path) -> None:
    spec = {"name": "v", "persistentVolumeClaim": {"claimName": "models"}}
    volumes = volumes_of(tmp_path, FakeSources([spec], {}))
    await volumes.prepare()
    assert volumes.paths["v"] == tmp_path / "claims" / "default" / "models"


@given(st.lists(st.binary(max_size=5).map(lambda b: b.replace(b"\n", b"") + b"\n")), st.integers(0, 20))
def test_the_tail_of_a_log_is_its_last_lines(lines: list[bytes], count: int) -> None:
    file = io.BytesIO(b"".join(lines))
    seek_tail(file, count)
    expected = lines[-count:] if count else []
    assert file.read() == b"".join(expected)


def test_a_tail_longer_than_a_block(tmp_path: Path) -> None:
    lines = [f"{number:0100d}\n".encode() for number in range(3000)]
    path = tmp_path / "log"
    path.write_bytes(b"".join(lines))
    with path.open("rb") as file:
        seek_tail(file, 2000)
        assert file.read() == b"".join(lines[-2000:])
