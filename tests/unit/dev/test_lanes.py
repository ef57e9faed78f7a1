"""Lanes: which test runs where, how runs are told, and that nothing is left of an interrupted one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.processes import left_after

from duet_dev.lanes.lane import API_SERVER, CLUSTER, ENGINES, LANES, PROCESSES, REST, SERVING, Lane, lane_of
from duet_dev.lanes.outcome import Outcome
from duet_dev.lanes.plugin import COLLECTED, lane_of_item
from duet_dev.paths import PACKAGE_PARENT, REPOSITORY

GONE_SECONDS = 20.0
STARTS: dict[str, frozenset[Lane]] = {
    "operator_release": frozenset({ENGINES, SERVING}),
    "local_cluster": frozenset({ENGINES, SERVING, CLUSTER}),
    "control_plane": frozenset({API_SERVER}),
    "apiserver": frozenset({API_SERVER}),
}
"""What many tests share -> the lanes that may start it."""


@pytest.mark.parametrize(
    ("markers", "fixtures", "folder", "lane"),
    [
        ((), (), "unit", REST),
        (("slow", "asyncio"), ("tmp_path",), "unit", REST),
        ((), ("tmp_path",), "integration", PROCESSES),
        (("apiserver",), ("control_plane",), "integration", API_SERVER),
        (("cluster",), ("local_cluster",), "e2e", CLUSTER),
        (("cluster",), ("local_cluster", "operator_release"), "e2e", SERVING),
        (("engine",), ("tmp_path",), "engine", ENGINES),
        (("engine", "cluster"), ("local_cluster", "operator_release"), "engine", ENGINES),
    ],
)
def test_markers_fixtures_and_folder_say_the_lane(
    markers: tuple[str, ...], fixtures: tuple[str, ...], folder: str, lane: Lane
) -> None:
    path = REPOSITORY / "tests" / folder / "test_some.py"
    assert lane_of(markers=markers, fixtures=fixtures, path=path) is lane
    assert lane.looks_at(path)


def test_every_test_is_where_its_lane_looks_and_starts_no_other_lanes_servers(request: pytest.FixtureRequest) -> None:
    """Of all tests that this run collected: in the lane that this test is in, that is all there are."""
    for item in request.config.stash[COLLECTED]:
        lane = lane_of_item(item)
        assert lane.looks_at(item.path), f"{item.nodeid} is in lane {lane.name}, which reads {lane.folder} alone"
        used: list[str] = getattr(item, "fixturenames", [])
        for name in STARTS.keys() & set(used):
            assert lane in STARTS[name], f"{item.nodeid} uses {name}, but is in lane {lane.name}"


def test_this_lane_looks_everywhere_and_takes_what_no_other_does() -> None:
    assert REST.folder == "tests"
    assert LANES[-1] is REST


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("=== 1 failed, 24 passed, 2 skipped, 3 deselected, 1 xfailed, 2 errors in 61.20s (0:01:01) ===",
         Outcome(passed=24, failed=1, error=2, skipped=2, xfailed=1)),
        ("12 passed in 0.52s", Outcome(passed=12)),
        ("\x1b[32m=== \x1b[32m\x1b[1m7 passed\x1b[0m\x1b[32m in 0.01s\x1b[0m\x1b[32m ===\x1b[0m", Outcome(passed=7)),
        ("=== 40 deselected in 0.30s ===", Outcome()),
        ("=== no tests ran in 0.00s ===", Outcome()),
        ("1 error in 0.10s", Outcome(error=1)),
    ],
)  # fmt: skip
def test_the_last_line_is_read(line: str, outcome: Outcome) -> None:
    assert Outcome.read(["tests/a.py ..F  [100%]", "FAILED tests/a.py::test - 3 passed by", line]) == outcome


def test_a_run_without_a_last_line_tells_nothing() -> None:
    assert Outcome.read(["tests/a.py ..", "INTERNALERROR> OSError: 3 passed"]) is None


def test_outcomes_add_up_and_always_say_passed_and_failed() -> None:
    assert str(Outcome(passed=2) + Outcome(passed=3, failed=1, skipped=4)) == "5 passed, 1 failed, 4 skipped"
    assert str(Outcome()) == "0 passed, 0 failed"


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A lane with only what lies in this folder; others by option."""
    command = [sys.executable, "-m", "duet_dev.lanes", "--lane=rest", "--in", str(folder)]
    return subprocess.Popen(
        [*command, "-c", os.devnull, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)},
    )


def test_every_lane_counts_and_a_failure_in_one_fails_all(tmp_path: Path) -> None:
    (tmp_path / "test_sum.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.cluster\n"
        "def test_on_the_cluster(): pass\n"
    )
    process = start(tmp_path, "--lane=cluster", "-W", "ignore::pytest.PytestUnknownMarkWarning")
    output, _ = process.communicate()
    assert process.returncode == 1, output
    *_, rest, total = output.splitlines()
    assert total == "2 passed, 1 failed"
    assert rest.startswith("     rest : 1 passed, 1 failed in 0:")
    assert "  cluster : 1 passed, 0 failed in 0:" in output
    assert any(line.startswith("     rest | FAILED ") and "test_bad" in line for line in output.splitlines()[-6:])


def test_real_engines_have_the_machine_to_themselves(tmp_path: Path) -> None:
    done = tmp_path / "done"
    (tmp_path / "test_turns.py").write_text(
        "import pathlib, time, pytest\n"
        f"done = pathlib.Path({str(done)!r})\n"
        "@pytest.mark.engine\n"
        "def test_engine(): time.sleep(0.5); done.touch()\n"
        "def test_afterwards(): assert done.exists()\n"
    )
    process = start(tmp_path, "--lane=engines", "-W", "ignore::pytest.PytestUnknownMarkWarning")
    output, _ = process.communicate()
    assert output.splitlines()[-1] == "2 passed, 0 failed", output


def test_a_lane_that_dies_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "test_dead.py").write_text("import os\ndef test_dead(): os._exit(0)\n")
    process = start(tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "rest : ended with status 0 before it could tell how it went" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    marker = f"86400.{os.getpid()}{time.monotonic_ns()}"
    (tmp_path / "test_long.py").write_text(
        "import pathlib, pytest, subprocess, time\n"
        "@pytest.fixture\n"
        "def server():\n"
        f"    process = subprocess.Popen(['sleep', '{marker}'])\n"
        f"    pathlib.Path({str(tmp_path / 'started')!r}).touch()\n"
        "    yield\n"
        "    process.kill(); process.wait()\n"
        "def test_long(server): time.sleep(600)\n"
    )
    process = start(tmp_path)
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == 130, output
        assert output.splitlines()[-1] == "0 passed, 0 failed"
    assert left_after(marker, seconds=GONE_SECONDS) == []
    assert left_after(str(tmp_path), seconds=GONE_SECONDS) == []
