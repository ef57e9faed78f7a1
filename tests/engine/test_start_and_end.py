"""How an engine begins in an SGLang that it wasn't written for, and how one ends (`make engine-full`)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.sglang_changes import with_changes
from tests.support.sglang_servers import LLAMA, SglangServer, Wanted, ask, generate, get, running_servers

from duet_dev import engine_environment
from duet_engine.protocol import WorkerState

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(900)]
PROMPT = [7, 11, 13, 17, 19]
END_SECONDS = 90.0


@pytest.fixture(scope="module")
def servers(engine_logs: Path) -> Iterator[dict[str, SglangServer]]:
    logs = engine_logs / "ends"
    logs.mkdir()
    wanted = {
        "changed": Wanted("unified", environment=with_changes(logs / "changed", "another_source()")),
        "patient": Wanted("unified"),
        "in a hurry": Wanted("unified", environment={"DUET_DRAIN_TIMEOUT_SECONDS": "1"}),
    }
    with running_servers(logs, wanted) as started:
        yield started


def test_a_changed_sglang_serves_and_stays_unready_with_the_reason(servers: dict[str, SglangServer]) -> None:
    """SGLang itself says that it's ready: without Duet's own probe nobody would notice."""
    server = servers["changed"]
    assert get(server, "/ready")[0] == 200
    status, answer = ask(server, "GET", "/duet/ready")
    assert status == 503
    assert "scheduler 0: sglang.srt.managers.scheduler.Scheduler.ingest_requests" in answer["reason"]
    assert "its source is another" in answer["reason"]
    assert get(server, "/duet/live")[0] == 200


DECODE_WORKERS = """
import sys
from types import SimpleNamespace
from sglang.srt.server_args import prepare_server_args
from duet_engine.plugin.deflection_scheduler import resolved_arguments
from duet_engine.plugin.deflection_support import lacks
own = [*sys.argv[1:], "--device", "cpu", "--attention-backend", "torch_native", "--disaggregation-mode", "decode"]
own += ["--disaggregation-decode-retraction-backup", "none"]
for more in ([], ["--enable-mixed-chunk", "--disaggregation-decode-enable-radix-cache"]):
    arguments = prepare_server_args([*own, *more])
    arguments.resolve_once()
    print("LACKS", len(lacks(resolved_arguments(SimpleNamespace(server_args=arguments)))))
"""


def test_what_a_decode_worker_lacks_is_seen_in_what_sglang_has_made_of_its_arguments(engine_logs: Path) -> None:
    """As they were given they don't say that SGLang's decode mode has no prefix cache."""
    model = str(engine_environment.model_folder(LLAMA))
    command = [str(engine_environment.engine_python()), "-c", DECODE_WORKERS, "--model-path", model]
    environment = {**os.environ, **engine_environment.environment()}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    assert [line for line in said.splitlines() if line.startswith("LACKS")] == ["LACKS 2", "LACKS 0"]


def test_told_to_end_it_refuses_what_is_new_finishes_what_runs_and_ends(servers: dict[str, SglangServer]) -> None:
    server = servers["patient"]
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(generate, server, PROMPT, tokens=1500)
        tell_to_end(server)
        assert get(server, "/duet/ready")[0] == 503
        status, refusal = ask(server, "POST", "/generate", {"input_ids": PROMPT})
        assert (status, refusal["reason"]) == (503, "draining")
        assert ask(server, "DELETE", "/duet/drain")[1]["phase"] == "terminating", "nobody takes that back"
        assert len(runs.result()["output_ids"]) == 1500
    server.process.wait(END_SECONDS)


def test_what_runs_longer_than_the_drain_may_last_gets_an_error(servers: dict[str, SglangServer]) -> None:
    server = servers["in a hurry"]
    body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 8000, "ignore_eos": True}}
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(ask, server, "POST", "/generate", body)
        tell_to_end(server)
        status, answer = runs.result()
    assert said_to_be_aborted(status, answer), (status, answer)
    server.process.wait(END_SECONDS)


def tell_to_end(server: SglangServer) -> None:
    """As a kubelet does it, while a request runs."""
    deadline = time.monotonic() + 30
    while not WorkerState.read(get(server, "/duet/state")[1]).work.running:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    while get(server, "/duet/ready")[0] != 503:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said_to_be_aborted(status: int, answer: Any) -> bool:
    """An error, or an answer that says that it isn't whole; never a cut connection."""
    return status >= 500 or (status == 200 and answer["meta_info"]["finish_reason"]["type"] == "abort")
