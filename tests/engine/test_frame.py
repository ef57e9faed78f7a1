"""The plugin's frame in a real SGLang: active everywhere or unready, telling, draining, taking settings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.sglang_servers import SglangServer, ask, generate, get

from duet_engine.plugin.scheduler_hooks import HOOKS
from duet_engine.protocol import (
    DrainPhase,
    DrainStatus,
    Knobs,
    Role,
    StepKind,
    WorkerInfo,
    WorkerState,
)
from duet_engine.step_log import read_step_log

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT = [7, 11, 13, 17, 19]


def state(server: SglangServer) -> WorkerState:
    return WorkerState.read(get(server, "/duet/state")[1])


def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "role"), [("plain", Role.UNIFIED), ("prefill", Role.PREFILL), ("decode", Role.DECODE)]
)
def test_every_process_says_that_its_hooks_are_in_force(
    servers: dict[str, SglangServer], name: str, role: Role
) -> None:
    until(lambda: get(servers[name], "/duet/ready")[0] == 200)
    info = WorkerInfo.read(get(servers[name], "/duet/info")[1])
    assert (info.worker, info.role, info.plugin_active, info.engine_version) == (name, role, True, "0.5.23")
    hooks = {process.name: [hook.target for hook in process.hooks if hook.active] for process in info.processes}
    assert set(hooks) == {"server", "scheduler", "detokenizer"}
    assert {hook.path for hook in HOOKS} <= set(hooks["scheduler"])
    assert info.profile.kv_capacity_tokens == 16384
    assert get(servers[name], "/duet/live")[0] == 200


def test_the_state_follows_the_scheduler(plain: SglangServer) -> None:
    before = state(plain)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(generate, plain, PROMPT, tokens=300, duet={"gateway": "g", "sequence": 41})
        until(lambda: state(plain).step is StepKind.DECODE)
        present = state(plain)
        assert (present.work.running, present.decode_requests) == (1, 1)
        assert present.kv_used_tokens >= len(PROMPT)
        assert present.accepted["g"] == 41
        assert len(asked.result()["output_ids"]) == 300
    until(lambda: state(plain).work.total == 0 and state(plain).step is StepKind.IDLE)
    after = state(plain)
    assert after.output_tokens_total - before.output_tokens_total == 300
    assert after.prefill_tokens_total - before.prefill_tokens_total == len(PROMPT)
    assert after.kv_used_tokens <= before.kv_used_tokens
    assert len(get(plain, "/duet/state")[1]) <= 2048


def test_our_series_stand_beside_sglangs(plain: SglangServer) -> None:
    generate(plain, PROMPT, tokens=4)
    lines = get(plain, "/metrics")[1].decode().splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] not in ("#", "")}
    assert values['duet_engine_steps_total{kind="decode",rank="0"}'] >= 3
    assert values["duet_engine_plugin_active"] == 1
    assert any(name.startswith("sglang:time_to_first_token_seconds") for name in values), "SGLang's own are gone"


def test_a_drain_refuses_at_once_finishes_what_runs_and_can_be_taken_back(plain: SglangServer) -> None:
    wanted = {"lease_seconds": 60, "requested_by": "test", "reason": "fewer", "worker": "plain"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(generate, plain, PROMPT, tokens=300)
        until(lambda: state(plain).work.running == 1)
        status, answer = ask(plain, "PUT", "/duet/drain", wanted)
        assert (status, answer["phase"], answer["remaining"]["running"]) == (200, "draining", 1)
        status, refusal = ask(plain, "POST", "/generate", {"input_ids": PROMPT})
        assert (status, refusal["reason"]) == (503, "draining")
        assert get(plain, "/duet/ready")[0] == 503
        assert len(asked.result()["output_ids"]) == 300
    until(lambda: DrainStatus.read(get(plain, "/duet/drain")[1]).phase is DrainPhase.DRAINED)
    ask(plain, "DELETE", "/duet/drain")
    assert get(plain, "/duet/ready")[0] == 200
    assert generate(plain, PROMPT, tokens=2)["output_ids"]


def test_a_request_that_waits_for_its_prefill_is_work_of_the_decode_worker(decode: SglangServer) -> None:
    """Its KV never comes: a drain must see it, and liveness must not blame this worker."""
    nowhere = {"bootstrap_host": "127.0.0.1", "bootstrap_port": 9, "bootstrap_room": 99}
    body = {"input_ids": PROMPT, "rid": "waits-for-nobody", **nowhere}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, decode, "POST", "/generate", body)
        until(lambda: state(decode).work.total >= 1 or asked.done())
        if not asked.done():
            status = ask(decode, "PUT", "/duet/drain", {"lease_seconds": 30})[1]
            assert status["phase"] == "draining"
            assert get(decode, "/duet/live")[0] == 200
            _abort(decode, "waits-for-nobody")
        asked.result()
    ask(decode, "DELETE", "/duet/drain")
    until(lambda: state(decode).work.total == 0)


def _abort(server: SglangServer, rid: str) -> None:
    """SGLang answers with nothing."""
    import urllib.request

    body = json.dumps({"rid": rid}).encode()
    request = urllib.request.Request(f"{server.url}/abort_request", body, {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


def test_settings_reach_the_scheduler_and_bad_ones_change_nothing(plain: SglangServer) -> None:
    def applied() -> dict[str, Any]:
        return Knobs.read(get(plain, "/duet/knobs")[1]).model_dump(include={"generation", "itl_milliseconds"})

    status, answer = ask(plain, "PUT", "/duet/knobs", {"generation": 3, "itl_milliseconds": 41})
    assert (status, answer["changed"]) == (200, True)
    assert applied() == {"generation": 3, "itl_milliseconds": 41}
    assert b"duet_engine_knobs_generation 3.0" in get(plain, "/metrics")[1]
    assert ask(plain, "PUT", "/duet/knobs", {"generation": 4, "itl_milliseconds": -1})[0] == 400
    assert ask(plain, "PUT", "/duet/knobs", {"generation": 4, "itl_milliseconds": 9, "ilt": 2})[0] == 400
    assert applied() == {"generation": 3, "itl_milliseconds": 41}


def test_the_step_log_tells_every_step(plain: SglangServer, engine_logs: Path) -> None:
    before = state(plain).prefill_tokens_total
    generate(plain, list(range(3, 103)), tokens=20)
    until(lambda: state(plain).work.total == 0)
    time.sleep(0.1)
    head, entries = read_step_log((engine_logs / "plain.steps").read_text().splitlines(), name="plain.steps")
    steps = list(entries)
    assert (head.worker, head.role, head.kv_capacity_tokens) == ("plain", Role.UNIFIED, 16384)
    assert sum(step.prefill_tokens for step in steps) == before + 100
    assert steps[-1].kind is StepKind.DECODE
    assert steps[-1].decode_context_tokens == 100 + 19
