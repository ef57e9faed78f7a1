"""Simulated engines as real processes on this machine's loopback address."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from duet_engine.protocol import Knobs, WorkerState

LISTENS = re.compile(r"listens on 127\.0\.0\.1:(\d+), bootstrap port (\d+)")
SMALL_MODEL = "Qwen/Qwen3-0.6B"
WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Engine:
    """A running engine and short ways to talk to it."""

    process: subprocess.Popen[str]
    url: str
    port: int
    bootstrap_port: int
    output: list[str] = field(default_factory=list)

    def pair_fields(self, room: int) -> dict[str, Any]:
        """What a request needs so that this prefill worker and a decode worker find each other."""
        return {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.bootstrap_port, "bootstrap_room": room}


@contextmanager
def running_engine(role: str, *options: str, ready: bool = True) -> Iterator[Engine]:
    """An engine that ends with the block, by force if need be."""
    own = ["--role", role, "--model", SMALL_MODEL, "--allow-faults"]
    own += ["--cold-start-seconds", "0"] if ready else []
    with running_process([*own, *options], {}) as engine:
        yield engine


@contextmanager
def running_process(options: Sequence[str], environment: Mapping[str, str]) -> Iterator[Engine]:
    """An engine with these options and this environment alone, on ports that are free."""
    command = [sys.executable, "-m", "duet_engine.simulated_engine", "--port", "0", "--bootstrap-port", "0", *options]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DUET_", "POD_"))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean | dict(environment))
    assert process.stdout is not None
    first = process.stdout.readline()
    found = LISTENS.search(first)
    assert found is not None, f"unexpected first line {first!r}"
    engine = Engine(process, f"http://127.0.0.1:{found[1]}", int(found[1]), int(found[2]), [first])
    reader = threading.Thread(target=lambda: engine.output.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        yield engine
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


async def get_json(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as response:
        return await response.json(content_type=None)


async def state(session: aiohttp.ClientSession, engine: Engine) -> WorkerState:
    async with session.get(f"{engine.url}/duet/state") as response:
        return WorkerState.read(await response.read())


async def until(
    session: aiohttp.ClientSession, engine: Engine, condition: Callable[[WorkerState], bool]
) -> WorkerState:
    """The first state that meets the condition."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        seen = await state(session, engine)
        if condition(seen):
            return seen
        assert time.monotonic() < deadline, f"still {seen}"


async def ask(session: aiohttp.ClientSession, engine: Engine, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of a request that isn't streamed."""
    async with session.post(engine.url + path, json=body) as response:
        return response.status, await response.json(content_type=None)


async def stream(session: aiohttp.ClientSession, engine: Engine, path: str, body: dict[str, Any]) -> list[Any]:
    """The documents of a streamed answer; it must be a whole stream of events."""
    async with session.post(engine.url + path, json=body | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return events(await response.text())


def events(text: str) -> list[Any]:
    """The documents of a stream of events, which must end as SGLang's do."""
    *lines, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def put_knobs(session: aiohttp.ClientSession, engine: Engine, **fields: Any) -> tuple[int, Any]:
    knobs = Knobs(generation=1, itl_milliseconds=50).model_dump(mode="json") | fields
    async with session.put(f"{engine.url}/duet/knobs", json=knobs) as response:
        return response.status, await response.json(content_type=None)


async def faults(session: aiohttp.ClientSession, engine: Engine, **wanted: Any) -> None:
    async with session.post(f"{engine.url}/simulate/faults", json=wanted) as response:
        assert response.status == 200, await response.text()
