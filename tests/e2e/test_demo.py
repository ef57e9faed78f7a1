"""The demo as a person starts it: to its report, into Ctrl-C, and with a trace that can't be read."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes import left_after

from duet_dev import build
from duet_dev.cluster import default_root
from duet_dev.paths import PACKAGE_PARENT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

GONE_SECONDS = 20.0


@pytest.fixture(autouse=True)
def built() -> None:
    """These tests start the demo itself, which would build for minutes what is missing."""
    if build.missing(build.ALL_TOOLS):
        if os.environ.get("DUET_REQUIRE_CLUSTER") == "1":
            pytest.fail("the cluster's binaries aren't built: run `make binaries`")
        pytest.skip("the cluster's binaries aren't built: run `make binaries`")


@pytest.fixture
def name() -> Iterator[str]:
    """A cluster's name of the test's own; whatever happens, nothing of it may be left."""
    chosen = f"demo-{secrets.token_hex(4)}"
    yield chosen
    assert left_after(str(default_root(chosen)), seconds=GONE_SECONDS) == []


def start(name: str, report: Path, trace: Path) -> subprocess.Popen[str]:
    options = [f"--name={name}", f"--report={report}", f"--trace={trace}"]
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "duet_dev.demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)},
    )


def short_trace(folder: Path, *, seconds: int) -> Path:
    """Two requests a second."""
    requests = [{"timestamp": 500 * each, "input_length": 300, "output_length": 20} for each in range(2 * seconds)]
    path = folder / "short.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def test_a_trace_runs_to_its_report(name: str, tmp_path: Path) -> None:
    process = start(name, tmp_path / "report", short_trace(tmp_path, seconds=10))
    output, _ = process.communicate()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    criteria = {criterion["name"]: criterion for criterion in report["criteria"]}
    assert criteria["no request failed"]["passed"], output
    # So little load moves no pool, and a busy machine may make the run invalid.
    assert not criteria["a pool shrank"]["passed"]
    assert process.returncode == {"failed": 1, "invalid": 3}[report["verdict"]]
    assert report["figures"]["requests"] == report["planned_requests"] == 20
    assert report["gpu_hours"] > 0
    assert (tmp_path / "report" / "timeline.png").stat().st_size > 10_000
    assert "0 of 20 requests failed" in output


def test_ctrl_c_in_the_middle_leaves_no_process(name: str, tmp_path: Path) -> None:
    process = start(name, tmp_path / "report", short_trace(tmp_path, seconds=110))
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("load"):
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == 130, "".join(seen) + rest
    assert "interrupted" in rest
    assert "cluster down" in rest


def test_a_bad_trace_is_told_before_anything_starts(name: str, tmp_path: Path) -> None:
    trace = short_trace(tmp_path, seconds=1)
    trace.write_text(trace.read_text().replace("300", '"many"', 1))
    process = start(name, tmp_path / "report", trace)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert f"{trace}: line 1: input_length must be a whole number of at least 1, not 'many'" in output
    assert "local cluster" not in output
