"""SGLang's change of role on a real worker, as the plugin wraps it (`make engine-full`)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.sglang_servers import SglangServer, Wanted, ask, generate, get, running_servers

from duet_engine.protocol import DrainPhase, DrainStatus, Role, WorkerInfo

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(600)]
SWITCHING = ("--enable-pd-role-switch", "--disaggregation-decode-retraction-backup", "none")
TO_DECODE = {"new_role": "decode", "decode_cuda_graph_memory_gb": 0}
DEFLECTED = {"duet": {"gateway": "g", "sequence": 1, "deflected": True}}
IDLE_CHECKS_SECONDS = 3.0


@pytest.fixture(scope="module")
def servers(engine_logs: Path) -> Iterator[dict[str, SglangServer]]:
    logs = engine_logs / "switch"
    logs.mkdir()
    wanted = {
        "plain": Wanted("unified"),
        "keeps its cache": Wanted("prefill", SWITCHING),
        "has no cache": Wanted("prefill", (*SWITCHING, "--disable-radix-cache")),
    }
    with running_servers(logs, wanted) as started:
        yield started


def drain(server: SglangServer) -> None:
    assert ask(server, "PUT", "/duet/drain", {"lease_seconds": 60})[0] == 200
    deadline = time.monotonic() + 30
    while DrainStatus.read(get(server, "/duet/drain")[1]).phase is not DrainPhase.DRAINED:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def role(server: SglangServer) -> Role:
    return WorkerInfo.read(get(server, "/duet/info")[1]).role


@pytest.mark.parametrize("name", ["keeps its cache", "has no cache"])
def test_a_drained_prefill_worker_becomes_a_decode_worker_and_lives(
    servers: dict[str, SglangServer], name: str
) -> None:
    """SGLang 0.5.23 alone takes its prefix cache for a leak after the second request with a shared beginning."""
    server = servers[name]
    status, refused = ask(server, "POST", "/pd_role_switch", TO_DECODE)
    assert (status, "drain" in refused["message"]) == (409, True)
    drain(server)
    status, answer = ask(server, "POST", "/pd_role_switch", TO_DECODE)
    assert (status, answer["new_role"]) == (200, "decode"), server.log_tail()
    assert ask(server, "DELETE", "/duet/drain")[0] == 200
    assert role(server) is Role.DECODE
    beginning = random.Random(1).choices(range(3, 512), k=300)
    for end in ([5], [6, 7], [8] * 200):
        expected = generate(servers["plain"], beginning + end, tokens=20)["output_ids"]
        assert generate(server, beginning + end, tokens=20, **DEFLECTED)["output_ids"] == expected
    time.sleep(IDLE_CHECKS_SECONDS)  # SGLang looks for leaks when it is idle, and would end
    assert json.loads(get(server, "/duet/ready")[1]) == {"ready": True, "reason": None}


def test_a_refused_switch_changes_nothing(servers: dict[str, SglangServer]) -> None:
    server = servers["keeps its cache"]
    before = role(server)
    drain(server)
    assert ask(server, "POST", "/pd_role_switch", {"new_role": "both"})[0] in (400, 422)
    ask(server, "DELETE", "/duet/drain")
    assert role(server) is before
    assert get(server, "/duet/ready")[0] == 200
