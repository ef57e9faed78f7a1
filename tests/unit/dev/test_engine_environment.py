"""What a process gets to run SGLang without a GPU, and how the parts of its environment are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from duet_dev import engine_environment
from duet_dev.errors import DevError


def test_a_process_finds_the_plugin_of_this_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUET_CACHE", str(tmp_path))
    path = engine_environment.environment()["PYTHONPATH"]
    script = (
        "from importlib.metadata import entry_points; (e,) = entry_points(group='sglang.srt.plugins');"
        "print(e.dist.name, e.value); import duet_engine; print(duet_engine.__file__)"
    )
    # -S: without the packages of this environment, where the project is installed too.
    printed = subprocess.run([sys.executable, "-S", "-c", script], env={"PYTHONPATH": path}, capture_output=True)
    name, file = printed.stdout.decode().splitlines()
    assert name == "duet-serve duet_engine.plugin:register"
    assert Path(file) == engine_environment.REPOSITORY / "engine" / "duet_engine" / "__init__.py"


def test_another_source_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUET_CACHE", str(tmp_path))
    source = tmp_path / "stub.c"
    source.write_text("int one(void) { return 1; }")
    monkeypatch.setattr(engine_environment, "STUB_SOURCE", source)
    before = engine_environment.stub_folder()
    assert engine_environment.stub_folder() == before
    source.write_text("int two(void) { return 2; }")
    assert engine_environment.stub_folder() != before


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUET_CACHE", str(tmp_path))
    monkeypatch.setattr(engine_environment, "NEEDED_GIGABYTES", 10**9)
    with pytest.raises(DevError, match="make room, set DUET_CACHE"):
        engine_environment.ensure()
    assert not engine_environment.ready()
