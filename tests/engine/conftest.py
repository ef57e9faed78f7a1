"""Real SGLang servers on the CPU, each started once per test run: a start costs half a minute of a core.

They skip where `make engine-env` hasn't been run; with DUET_REQUIRE_ENGINE=1 they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import engine_page
from tests.support.bench_rows import Row, merged
from tests.support.sglang_servers import SglangServer, Wanted, starting_servers, wait_ready

from duet_dev import engine_environment

SEED = 20_511


@pytest.fixture(scope="session")
def engine_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where servers log; asking for it makes sure that there is an SGLang to start."""
    if not engine_environment.ready():
        reason = "SGLang isn't installed for tests: run `make engine-env` (10 GB)"
        if os.environ.get("DUET_REQUIRE_ENGINE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def figures() -> Iterator[list[Row]]:
    """Takes rows; with DUET_WRITE_RESULTS=1 they are in docs/results/engine.* after the run."""
    rows: list[Row] = []
    yield rows
    if rows and os.environ.get("DUET_WRITE_RESULTS") == "1":
        engine_page.write_page(merged(rows, name=engine_page.NAME, command="make engine-full", seed=SEED))


@pytest.fixture(scope="session")
def starting(request: pytest.FixtureRequest, engine_logs: Path) -> Iterator[dict[str, SglangServer]]:
    """The servers of `servers`, on their way if a test of this run will ask for them.

    What comes before such tests and needs a core runs beside their start.
    """
    wanted = {
        "plain": Wanted("unified", environment={"DUET_STEP_LOG": str(engine_logs / "plain.steps")}),
        "prefill": Wanted("prefill"),
        "decode": Wanted("decode"),
    }
    both = {request.fixturename, "servers"}  # a module may have servers of its own by that name
    asked_for = any(both <= set(getattr(item, "fixturenames", ())) for item in request.session.items)
    with starting_servers(engine_logs, wanted if asked_for else {}) as started:
        yield started


@pytest.fixture(scope="session")
def servers(starting: dict[str, SglangServer]) -> dict[str, SglangServer]:
    """`plain` without any other worker, `prefill` and `decode` as a pair: ready."""
    for server in starting.values():
        wait_ready(server)
    return starting


@pytest.fixture(scope="session")
def plain(servers: dict[str, SglangServer]) -> SglangServer:
    return servers["plain"]


@pytest.fixture(scope="session")
def prefill(servers: dict[str, SglangServer]) -> SglangServer:
    return servers["prefill"]


@pytest.fixture(scope="session")
def decode(servers: dict[str, SglangServer]) -> SglangServer:
    return servers["decode"]
