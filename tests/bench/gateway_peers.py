"""What a gateway is measured against and between: two Rust routers from wheels, a Go server of streams, a Go client.

The routers lie in virtual environments of their own under the cache folder, the Go program is built there; both are
made on first use. They are never a dependency of the project.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet_dev.controlplane import free_ports

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("DUET_CACHE", Path.home() / ".cache" / "duet"))
STREAMS = CACHE / "streams"
PEERS = {"sglang-router": "0.3.2", "smg": "1.13.0"}
UVICORN = CACHE / "peers" / "uvicorn"
PATIENCE_SECONDS = 60.0
MODEL = "m"


@dataclass
class Server:
    """A child process that serves HTTP on loopback."""

    popen: subprocess.Popen[bytes]
    url: str
    name: str

    def cpu_seconds(self) -> float:
        """User and system time of the process and its children."""
        return sum(_cpu_seconds(pid) for pid in (self.popen.pid, *_children(self.popen.pid)))

    def resident_mib(self) -> float:
        pids = (self.popen.pid, *_children(self.popen.pid))
        return sum(_status_kib(pid, "VmRSS") for pid in pids) / 1024

    def end(self) -> None:
        for pid in _children(self.popen.pid):
            os.kill(pid, 9)
        self.popen.kill()
        self.popen.wait()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_kib(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for each in listed for child in (int(each), *_children(int(each)))]


def prepare() -> None:
    """Build the Go program; install the routers, and uvicorn, where they aren't there yet."""
    subprocess.run(["go", "build", "-o", STREAMS, "."], cwd=ROOT / "tests" / "bench" / "streams", check=True)
    for name, version in PEERS.items():
        _install(CACHE / "peers" / name, f"{name}=={version}")
    _install(UVICORN, "uvicorn==0.38.0", "uvloop", "httptools")


def _install(home: Path, *packages: str) -> None:
    """A virtual environment of its own, if there is none yet."""
    if (home / "bin" / home.name).exists():
        return
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, home], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", home / "bin" / "python", *packages], check=True)


@contextmanager
def running(name: str, command: list[str | Path], port: int, log: Path, *, path: str = "/health") -> Iterator[Server]:
    """A server from when it answers until the block is left."""
    with log.open("wb") as output:
        popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    server = Server(popen, f"http://127.0.0.1:{port}", name)
    try:
        _answers(server, path, log)
        yield server
    finally:
        server.end()


def _answers(server: Server, path: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if server.popen.poll() is not None:
            break
        try:
            with urllib.request.urlopen(server.url + path, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{server.name} doesn't answer: {log.read_text()[-2000:]}")


@contextmanager
def backend(folder: Path, *, chunks: int, pace: str) -> Iterator[Server]:
    """The Go server of streams."""
    (port,) = free_ports(1)
    command: list[str | Path] = [STREAMS, "serve", str(port), str(chunks), pace]
    with running("backend", command, port, folder / "backend.log") as server:
        yield server


@contextmanager
def uvicorn_backend(folder: Path, *, chunks: int, pace: str) -> Iterator[Server]:
    """The same streams from the server that SGLang uses."""
    (port,) = free_ports(1)
    command: list[str | Path] = [UVICORN / "bin" / "python", ROOT / "tests" / "bench" / "streams" / "served.py"]
    command += [str(port), str(chunks), pace]
    with running("uvicorn", command, port, folder / "uvicorn.log") as server:
        yield server


@contextmanager
def duet(folder: Path, workers: list[dict[str, Any]], *options: str) -> Iterator[Server]:
    """This project's gateway, one process unless told otherwise; no objective is near.

    Nothing is computed behind it, so predicted work must hold nobody back, as it holds nobody back at the others.
    """
    port, admin = free_ports(2)
    config = folder / "gateway.json"
    slo = {"ttftMilliseconds": 60_000, "itlMilliseconds": 10_000}
    config.write_text(json.dumps({"workers": workers, "model": {"id": MODEL}, "slo": slo}))
    command: list[str | Path] = [sys.executable, "-m", "duet_engine.gateway", "--config", config, "--port", str(port)]
    command += ["--admin-port", str(admin), "--log-level", "WARNING", "--window-seconds", "1000", *options]
    with running("duet", command, port, folder / "duet.log", path="/ready") as server:
        yield server


@contextmanager
def router(folder: Path, name: str, arguments: list[str]) -> Iterator[Server]:
    """One of the peers, round robin, without its retries' and breakers' bookkeeping."""
    port, metrics = free_ports(2)
    command: list[str | Path] = [CACHE / "peers" / name / "bin" / name, "launch", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(metrics), "--policy", "round_robin"]
    command += ["--log-level", "warn", *arguments]
    if name == "smg":
        command += ["--disable-worker-overload-protection"]
    with running(name, command, port, folder / f"{name}.log", path="/v1/models") as server:
        yield server


def load(url: str, *, concurrent: int, total: int, ramp: str = "0s") -> dict[str, Any]:
    """What the Go client saw of so many requests."""
    command = [STREAMS, "load", f"{url}/v1/completions", str(concurrent), str(total), ramp]
    said: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return said


@contextmanager
def holding(url: str, streams: int) -> Iterator[None]:
    """So many streams, open and silent while the block runs."""
    command = [STREAMS, "hold", f"{url}/v1/completions", str(streams), "100"]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert popen.stdout is not None and popen.stdout.readline() == b"open\n"
        time.sleep(1.0)
        yield
    finally:
        popen.kill()
        popen.wait()
