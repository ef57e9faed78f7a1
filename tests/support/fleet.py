"""Simulated engines and gateways as real processes on loopback, for tests of the data path.

A `Fleet` is a context: everything that was started in it has ended when it is left, and the gateways' logs are printed
when the test failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from duet_dev.controlplane import free_ports

MODEL = "Qwen/Qwen3-0.6B"
GPU = "h100-1g.10gb"
LONG_PROMPT = [7] * 12_000
"""About 0.9 s of prefill on the simulated slice."""
LISTENS = re.compile(r"listens on 127\.0\.0\.1:(\d+), bootstrap port (\d+)")
PATIENCE_SECONDS = 30.0

T = TypeVar("T")


@dataclass
class Process:
    """A child with its own log file."""

    popen: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """Make it fall silent without closing anything."""
        self.popen.send_signal(signal.SIGSTOP)

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.kill()


@dataclass
class EngineProcess(Process):
    """One simulated engine."""

    name: str
    role: str
    port: int
    bootstrap_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def entry(self) -> dict[str, Any]:
        """Its line in a gateway's configuration file."""
        entry = {"url": self.url, "role": self.role, "name": self.name}
        return {**entry, "bootstrapPort": self.bootstrap_port} if self.role == "prefill" else entry


@dataclass
class GatewayProcess(Process):
    """One gateway."""

    port: int
    admin: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Answer:
    """What a client saw of one streamed or whole request."""

    status: int
    route: str
    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    error: str | None = None

    @property
    def whole(self) -> bool:
        return self.status == 200 and self.done and self.error is None


class Fleet:
    """Starts processes and ends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[Process] = []

    def engine(self, role: str, *options: str, name: str | None = None) -> EngineProcess:
        """A simulated engine, listening; ready shortly after."""
        name = name or f"{role}-{len(self._processes)}"
        log = self._folder / f"{name}.log"
        command = [sys.executable, "-m", "duet_engine.simulated_engine", "--role", role, "--gpu", GPU, "--model", MODEL]
        command += ["--port", "0", "--bootstrap-port", "0", "--cold-start-seconds", "0", "--allow-faults"]
        command += ["--worker", name, *options]
        popen = self._start(command, log)
        found = wait_for(lambda: LISTENS.search(said(popen, log)), f"{name} to listen")
        engine = EngineProcess(popen, log, name, role, int(found[1]), int(found[2]))
        self._processes.append(engine)
        return engine

    def gateway(
        self, engines: list[EngineProcess], *options: str, config: dict[str, Any] | None = None
    ) -> GatewayProcess:
        """A gateway before these engines, listening."""
        content = {"workers": [engine.entry() for engine in engines], "model": {"id": MODEL}, **(config or {})}
        path = self._folder / f"gateway-{len(self._processes)}.json"
        path.write_text(json.dumps(content))
        return self.gateway_process("--config", str(path), *options)

    def gateway_process(self, *arguments: str, environment: dict[str, str] | None = None) -> GatewayProcess:
        """A gateway with these arguments, listening."""
        port, admin_port = free_ports(2)
        log = self._folder / f"gateway-{len(self._processes)}.log"
        command = [sys.executable, "-m", "duet_engine.gateway", "--port", str(port), "--admin-port", str(admin_port)]
        command += ["--propagation-seconds", "0.5", *arguments]
        popen = self._start(command, log, environment)
        gateway = GatewayProcess(popen, log, port, f"http://127.0.0.1:{admin_port}")
        self._processes.append(gateway)
        wait_for(lambda: "serving on" in said(popen, log) or None, "the gateway to serve")
        return gateway

    def close(self) -> None:
        for process in self._processes:
            process.end()

    def logs(self) -> str:
        return "\n".join(f"--- {process.log.name}\n{process.log.read_text()[-6000:]}" for process in self._processes)

    def _start(
        self, command: list[str], log: Path, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
            )


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """A fleet for one test."""
    processes = Fleet(folder)
    try:
        yield processes
    except BaseException:
        print(processes.logs())  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        processes.close()


def said(popen: subprocess.Popen[bytes], log: Path) -> str:
    """What a process that must still run has logged."""
    text = log.read_text()
    assert popen.poll() is None, f"ended with {popen.returncode}: {text}"
    return text


def wait_for(condition: Callable[[], T | None], what: str) -> T:
    """The condition's first value that isn't None."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if (value := condition()) is not None:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain for {what}")
        await asyncio.sleep(0.02)


async def get_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url) as response:
        found: dict[str, Any] = await response.json(content_type=None)
        return found


async def demand(session: aiohttp.ClientSession, gateway: GatewayProcess) -> dict[str, Any]:
    return await get_json(session, gateway.admin + "/duet/demand")


async def default_class(session: aiohttp.ClientSession, gateway: GatewayProcess) -> dict[str, Any]:
    found: dict[str, Any] = (await demand(session, gateway))["classes"][0]
    return found


async def work_of(session: aiohttp.ClientSession, engine: EngineProcess) -> int:
    state = await get_json(session, engine.url + "/duet/state")
    return sum(state["work"].values())


async def all_usable(session: aiohttp.ClientSession, gateway: GatewayProcess, count: int) -> None:
    """Wait until the gateway hears this many ready workers."""

    async def heard() -> bool:
        workers = (await demand(session, gateway))["workers"]
        return sum(bool(worker["reachable"] and worker["state"]["ready"]) for worker in workers) == count

    await eventually(heard, f"{count} usable workers")


def completion(tokens: int = 8, *, prompt: Any = "once upon a time", **fields: Any) -> dict[str, Any]:
    """A streamed completion of exactly so many tokens."""
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, **fields}


async def ask(session: aiohttp.ClientSession, url: str, body: Any, path: str = "/v1/completions") -> Answer:
    """Send one request and read its answer to the end; a broken connection is an error, not an exception."""
    try:
        async with session.post(url + path, json=body) as response:
            answer = Answer(response.status, response.headers.get("x-duet-route", ""))
            if response.content_type != "text/event-stream":
                answer.text = (await response.read()).decode()
                answer.done = True
                return answer
            async for line in response.content:
                _read_event(answer, line)
            return answer
    except aiohttp.ClientError as error:
        return Answer(0, "", error=repr(error))


def _read_event(answer: Answer, line: bytes) -> None:
    if not line.startswith(b"data: "):
        return
    data = line[6:].strip()
    if data == b"[DONE]":
        answer.done = True
        return
    event = json.loads(data)
    answer.events.append(event)
    if "error" in event:
        answer.error = event["error"]["message"]
    for choice in event.get("choices", ()):
        answer.text += choice.get("text") or choice.get("delta", {}).get("content") or ""
