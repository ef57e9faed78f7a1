"""The real SGLang on the CPU as processes on this machine's loopback address, from `make engine-env`'s environment.

A server costs 2.5 GB and half a minute of a core: share them among tests (`tests/engine/conftest.py`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duet_dev import engine_environment
from duet_dev.processes import guarded

START_SECONDS = 540.0
"""On a machine with other work; whoever fails to start ends, and that is seen at once."""
STOP_SECONDS = 30.0
LLAMA, QWEN3 = "tiny-llama", "tiny-qwen3"
SMALL = (
    *("--dtype", "float32", "--mem-fraction-static", "0.5"),
    *("--max-total-tokens", "16384", "--max-running-requests", "64"),
)
"""What fits several servers on one machine; 32-bit floats as the tiny models have them."""


@dataclass(frozen=True, slots=True)
class SglangServer:
    """A running server."""

    process: subprocess.Popen[bytes]
    role: str
    port: int
    bootstrap_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pair_fields(self, room: int) -> dict[str, Any]:
        """What a request needs so that this prefill server and a decode server find each other."""
        return {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.bootstrap_port, "bootstrap_room": room}

    def log_tail(self, characters: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-characters:]


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Wanted:
    """A server to start."""

    role: str
    options: tuple[str, ...] = ()
    """Arguments of SGLang beside."""
    model: str = LLAMA
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def running_server(wanted: Wanted, *, logs: Path, name: str = "", wait: bool = True) -> Iterator[SglangServer]:
    """One server that ends with the block, by force if need be."""
    server = start_server(wanted, logs=logs, name=name or wanted.role)
    try:
        if wait:
            wait_ready(server)
        yield server
    finally:
        stop_server(server)


@contextmanager
def running_servers(logs: Path, wanted: Mapping[str, Wanted]) -> Iterator[dict[str, SglangServer]]:
    """Several at once, by name. They start side by side, which takes less time than in turn."""
    with starting_servers(logs, wanted) as servers:
        for server in servers.values():
            wait_ready(server)
        yield servers


@contextmanager
def starting_servers(logs: Path, wanted: Mapping[str, Wanted]) -> Iterator[dict[str, SglangServer]]:
    """The same before they are ready: there is time for something else."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(running_server(each, logs=logs, name=name, wait=False))
            for name, each in wanted.items()
        }


def start_server(wanted: Wanted, *, logs: Path, name: str) -> SglangServer:
    """Start `duet-engine` as an engine's pod does; it loads its model afterwards."""
    port, bootstrap_port = free_port(), free_port()
    model = str(engine_environment.model_folder(wanted.model))
    own = {
        "DUET_ROLE": wanted.role,
        "DUET_MODEL_ID": wanted.model,
        "DUET_MODEL_PATH": model,
        "POD_NAME": name,
        "POD_IP": "127.0.0.1",
        "DUET_PORT": str(port),
        "DUET_BOOTSTRAP_PORT": str(bootstrap_port),
        "DUET_TRANSFER_BACKEND": "mooncake_tcp",
        "DUET_LOG_FORMAT": "text",
        **engine_environment.environment(),
        **wanted.environment,
    }
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DUET_", "POD_", "SGLANG_"))}
    # A test run that is killed leaves none of its servers behind.
    command = guarded([str(engine_environment.engine_python()), "-m", "duet_engine.launch", *SMALL, *wanted.options])
    log = logs / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**clean, **own}, start_new_session=True)
    return SglangServer(process, wanted.role, port, bootstrap_port, log)


def wait_ready(server: SglangServer, path: str = "/ready") -> None:
    """Until it takes requests."""
    deadline = time.monotonic() + START_SECONDS
    while get(server, path)[0] != 200:
        assert server.process.poll() is None, f"{server.role} ended while starting:\n{server.log_tail()}"
        assert time.monotonic() < deadline, f"{server.role} isn't ready:\n{server.log_tail()}"
        time.sleep(0.5)


def stop_server(server: SglangServer) -> None:
    """End the server and its helpers: they are one session."""
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(STOP_SECONDS)


def get(server: SglangServer, path: str) -> tuple[int, bytes]:
    """Status and body; 0 while nobody answers."""
    return _call(urllib.request.Request(server.url + path), seconds=10)


def ask(server: SglangServer, method: str, path: str, document: Any = None) -> tuple[int, Any]:
    """Status and JSON of a call with a JSON body; (0, None) where no answer comes."""
    body = None if document is None else json.dumps(document).encode()
    headers = {"content-type": "application/json"}
    status, content = _call(urllib.request.Request(server.url + path, body, headers, method=method), seconds=30)
    return status, json.loads(content) if content else None


def generate(server: SglangServer, input_ids: Sequence[int], *, tokens: int = 16, **fields: Any) -> dict[str, Any]:
    """The answer of `/generate` to a prompt of token ids, greedy unless told otherwise."""
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True, **fields.pop("sampling", {})}
    body = json.dumps({"input_ids": list(input_ids), "sampling_params": sampling, **fields}).encode()
    headers = {"content-type": "application/json"}
    status, content = _call(urllib.request.Request(f"{server.url}/generate", body, headers), seconds=120)
    assert status == 200, f"{server.role}: {status} {content[:500]!r}\n{server.log_tail()}"
    answer: dict[str, Any] = json.loads(content)
    return answer


def post(server: SglangServer, path: str, document: Any = None) -> bytes:
    """What a call that must succeed is answered with, in whatever form."""
    body = json.dumps(document or {}).encode()
    request = urllib.request.Request(server.url + path, body, {"content-type": "application/json"})
    status, content = _call(request, seconds=60)
    assert status == 200, f"{server.role}: {path}: {status} {content[:500]!r}"
    return content


def through_pair(
    prefill: SglangServer,
    decode: SglangServer,
    prompt: Sequence[int],
    *,
    prefilled: Sequence[int] | None = None,
    **fields: Any,
) -> list[int]:
    """What the decode server answers with the prefill server's KV: of this prompt, or of another as long."""
    pair = prefill.pair_fields(random.getrandbits(60))
    with ThreadPoolExecutor(1) as pool:
        first_half = pool.submit(generate, prefill, prompt if prefilled is None else prefilled, **fields, **pair)
        answer: list[int] = generate(decode, prompt, **fields, **pair)["output_ids"]
        first_half.result()
    return answer


def _call(request: urllib.request.Request, *, seconds: float) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""
