"""Real SGLang servers on the CPU, each started once per test run: a start costs half a minute of a core.

They skip where `make engine-env` hasn't been run; with DUET_REQUIRE_ENGINE=1 they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.sglang_servers import SglangServer, Wanted, running_servers

from duet_dev import engine_environment

ANOTHER_PLUGIN = """
import sys


class Changed:
    '''Does to SGLang what another release or another plugin might do: one function is another.'''

    def find_spec(self, name, path=None, target=None):
        if name != "sglang.srt.managers.scheduler":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            before = module.Scheduler.ingest_requests
            module.Scheduler.ingest_requests = lambda *given, **named: before(*given, **named)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Changed())
"""


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
def servers(engine_logs: Path) -> Iterator[dict[str, SglangServer]]:
    """`plain` without any other worker, `prefill` and `decode` as a pair, `broken` with a changed SGLang."""
    changed = engine_logs / "changed"
    changed.mkdir()
    (changed / "sitecustomize.py").write_text(ANOTHER_PLUGIN)
    path = f"{changed}:{engine_environment.environment()['PYTHONPATH']}"
    with running_servers(
        engine_logs,
        {
            "plain": Wanted("unified", environment={"DUET_STEP_LOG": str(engine_logs / "plain.steps")}),
            "prefill": Wanted("prefill"),
            "decode": Wanted("decode"),
            "broken": Wanted("unified", environment={"PYTHONPATH": path}),
        },
    ) as started:
        yield started


@pytest.fixture(scope="session")
def plain(servers: dict[str, SglangServer]) -> SglangServer:
    return servers["plain"]


@pytest.fixture(scope="session")
def prefill(servers: dict[str, SglangServer]) -> SglangServer:
    return servers["prefill"]


@pytest.fixture(scope="session")
def decode(servers: dict[str, SglangServer]) -> SglangServer:
    return servers["decode"]


@pytest.fixture(scope="session")
def broken(servers: dict[str, SglangServer]) -> SglangServer:
    return servers["broken"]
