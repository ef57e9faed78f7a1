"""Where binaries lie in the cache, what makes that change, and what a build leaves behind."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from duet_dev import build
from duet_dev.errors import DevError
from duet_dev.paths import cache_root

FAKE_GO = """#!/bin/sh
echo "$*" >> "$CALLS"
case $1 in
env) echo go9.9.9 ;;
list) printf 'one\\ntwo\\n' ;;
build)
    case "$*" in *" std") exit ;; esac
    while [ "$1" != -o ]; do shift; done
    [ -n "$BROKEN" ] && { echo "two.go:1: no such thing"; exit 1; }
    echo one; echo two
    folder=$2; shift 2
    for package; do
        case $(basename "$package") in v[0-9]) package=$(dirname "$package") ;; esac
        echo "$package" > "$folder$(basename "$package")"
    done ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `go` that only writes down what it was asked for, and an empty cache."""
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(FAKE_GO)
    go.chmod(go.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(log))
    monkeypatch.delenv("BROKEN", raising=False)
    return log


def builds(calls: Path) -> list[str]:
    """The commands that build binaries."""
    return [line for line in calls.read_text().splitlines() if line.startswith("build ") and " -o " in line]


def module(folder: Path, *, go_mod: str = "module m\n", go_sum: str = "") -> Path:
    folder.mkdir()
    (folder / "go.mod").write_text(go_mod)
    (folder / "go.sum").write_text(go_sum)
    return folder


def test_digest_follows_go_mod_go_sum_and_flags(tmp_path: Path) -> None:
    base = module(tmp_path / "base")
    modules = {
        "same": module(tmp_path / "same"),
        "go.mod": module(tmp_path / "mod", go_mod="module m // changed\n"),
        "go.sum": module(tmp_path / "sum", go_sum="a v1.0.0 h1:x\n"),
    }
    digests = {name: build.module_digest(folder, flags=["-trimpath"]) for name, folder in modules.items()}
    expected = build.module_digest(base, flags=["-trimpath"])
    assert digests["same"] == expected
    others = {digests["go.mod"], digests["go.sum"], build.module_digest(base, flags=[])}
    assert len(others | {expected}) == 4


def test_moving_a_line_from_go_mod_to_go_sum_changes_the_digest(tmp_path: Path) -> None:
    first = module(tmp_path / "first", go_mod="a\nb\n", go_sum="")
    second = module(tmp_path / "second", go_mod="a\n", go_sum="b\n")
    assert build.module_digest(first, flags=[]) != build.module_digest(second, flags=[])


def test_kubernetes_version_is_stamped(tmp_path: Path) -> None:
    folder = module(tmp_path / "kubernetes", go_mod="require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n")
    stamped = build.linker_flags(folder)
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3" in stamped
    assert "-X k8s.io/component-base/version.gitMinor=36" in stamped


def test_cache_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
    monkeypatch.delenv("DUET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "duet"


def test_each_binary_is_built_once(calls: Path) -> None:
    build.build([build.ETCD, build.KUBECTL])
    assert len(builds(calls)) == 1
    assert build.binary_path(build.ETCD).read_text() == "go.etcd.io/etcd/server\n"
    assert build.binary_path(build.KUBECTL).read_text() == "k8s.io/kubernetes/cmd/kubectl\n"
    calls.write_text("")
    build.build([build.ETCD, build.KUBECTL])
    assert calls.read_text() == ""


def test_what_is_built_already_is_not_built_again(calls: Path) -> None:
    build.build([build.ETCD])
    calls.write_text("")
    build.build([build.ETCD, build.KUBECTL])
    (command,) = builds(calls)
    assert build.KUBECTL.package in command and build.ETCD.package not in command


def test_a_failed_build_says_why_and_leaves_no_binary(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "yes")
    with pytest.raises(DevError, match=r"two\.go:1: no such thing"):
        build.build([build.ETCD])
    assert build.missing([build.ETCD]) == [build.ETCD]


def test_leftovers_of_a_killed_build_are_removed(calls: Path) -> None:
    leftover = build.binary_path(build.ETCD).with_name(build.PARTIAL) / "etcd"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half a binary")
    build.build([build.KUBECTL])
    assert not leftover.exists()


def test_two_builds_at_once_make_each_binary_once(calls: Path) -> None:
    command = [sys.executable, "-c", "from duet_dev import build; build.build([build.ETCD, build.KUBECTL])"]
    environment = {**os.environ, "PYTHONPATH": str(Path(build.__file__).parent.parent)}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(builds(calls)) == 1
