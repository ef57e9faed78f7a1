"""The gateway against two Rust routers and no router at all: CPU for each token, time added, requests per second.

Run: `make bench-gateway`, or `python tests/bench/bench_gateway.py [--scale 0.2] [--only PART]`. Writes
docs/results/gateway.json and gateway.md. All are measured one after the other, before the same server of streams (in
Go, or uvicorn) and the same Go client; only the ratios of a row mean anything. CPU seconds are user and system time of
the gateway alone, one process. Every figure of Duet's includes what the others don't do: counting gaps and tokens,
predictions and attribution. Its window of predicted work (150 ms by default) is opened: what is behind the gateways
here computes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.gateway_peers import (  # noqa: E402
    MODEL,
    PEERS,
    Server,
    backend,
    duet,
    holding,
    load,
    prepare,
    router,
    uvicorn_backend,
)
from tests.support.fleet import Fleet, fleet  # noqa: E402

RESULTS = ROOT / "docs" / "results"
CHUNKS, PACE = 64, "10ms"
AT_ONCE, EVENLY = "0s", "640ms"
"""When a load's first streams start: all in one moment, or spread over the time that one takes."""
SILENT_STREAMS = 5000
COLUMNS = ("figure", "value", "unit", "peer", "peer_value", "ratio")
NOTES = "## What it means\n"
GPU, REFERENCE_MODEL = "h100-sxm", "meta-llama/Llama-3.1-8B"
OURS = "duet"

Start = Callable[[Path], AbstractContextManager[Server]]
Backend = Callable[..., AbstractContextManager[Server]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One gateway under one load."""

    whole: int
    requests: int
    cpu_milliseconds_per_request: float
    cpu_microseconds_per_chunk: float
    ttft_p50_milliseconds: float
    ttft_p95_milliseconds: float
    requests_per_second: float


def measure(server: Server, url: str, *, concurrent: int, total: int, ramp: str = AT_ONCE) -> Measured:
    """After a short warm-up."""
    load(url, concurrent=min(concurrent, 32), total=min(64, total))
    before = server.cpu_seconds()
    seen = load(url, concurrent=concurrent, total=total, ramp=ramp)
    cpu_seconds = server.cpu_seconds() - before
    assert seen["whole"] == total, f"{server.name}: {seen['whole']} of {total}: {seen.get('first_error')}"
    ttft = seen["ttft_milliseconds"]
    return Measured(
        whole=seen["whole"],
        requests=total,
        cpu_milliseconds_per_request=1e3 * cpu_seconds / total,
        cpu_microseconds_per_chunk=1e6 * cpu_seconds / seen["chunks"],
        ttft_p50_milliseconds=ttft[len(ttft) // 2],
        ttft_p95_milliseconds=ttft[int(0.95 * (len(ttft) - 1))],
        requests_per_second=total / seen["seconds"],
    )


def gateways(workers: list[dict[str, Any]], peer_arguments: list[str]) -> dict[str, Start]:
    """How each is started before the same workers."""
    started: dict[str, Start] = {OURS: lambda folder: duet(folder, workers)}
    for name in PEERS:
        started[name] = lambda folder, name=name: router(folder, name, peer_arguments)  # type: ignore[misc]
    return started


def compare(
    folder: Path, *, pace: str, concurrent: int, total: int, ramp: str = AT_ONCE, served: Backend = backend
) -> dict[str, Measured]:
    """Streams of small chunks, straight and through each gateway."""
    found = {}
    with served(folder, chunks=CHUNKS, pace=pace) as server:
        found["direct"] = measure(server, server.url, concurrent=concurrent, total=total, ramp=ramp)
        workers = [{"url": server.url, "role": "unified"}]
        for name, start in gateways(workers, ["--worker-urls", server.url]).items():
            with start(folder) as gateway:
                found[name] = measure(gateway, gateway.url, concurrent=concurrent, total=total, ramp=ramp)
            say(f"{pace} {concurrent} {ramp}", name, found[name])
    return found


def compare_pairs(folder: Path, *, concurrent: int, total: int) -> dict[str, Measured]:
    """Dispatch to a prefill and a decode worker, simulated ones, each started anew for each gateway."""
    found = {}
    for name in (OURS, *PEERS):
        with pair(folder) as (workers, arguments), gateways(workers, arguments)[name](folder) as gateway:
            found[name] = measure(gateway, gateway.url, concurrent=concurrent, total=total)
        say("pairs", name, found[name])
    return found


@contextmanager
def pair(folder: Path) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    options = ("--gpu", GPU, "--model", REFERENCE_MODEL, "--served-name", MODEL)
    with fleet(folder) as processes:
        prefill, decode = (ready(processes, role, *options) for role in ("prefill", "decode"))
        arguments = ["--pd-disaggregation", "--prefill", prefill.url, str(prefill.bootstrap_port)]
        yield [prefill.entry(), decode.entry()], [*arguments, "--decode", decode.url]


def ready(processes: Fleet, role: str, *options: str) -> Any:
    engine = processes.engine(role, *options)
    time.sleep(0.5)
    return engine


def resident(folder: Path, *, streams: int) -> dict[str, float]:
    """Memory with so many streams that are silent."""
    found = {}
    with backend(folder, chunks=2, pace="120s") as server:
        for name, start in gateways([{"url": server.url, "role": "unified"}], ["--worker-urls", server.url]).items():
            with start(folder) as gateway:
                before = gateway.resident_mib()
                with holding(gateway.url, streams):
                    found[name] = gateway.resident_mib()
                print(f"{streams} silent streams", name, round(before), round(found[name]), "MiB", flush=True)
    return found


def say(load_name: str, name: str, seen: Measured) -> None:
    print(
        f"{load_name:12} {name:14} {seen.cpu_microseconds_per_chunk:6.1f} us/chunk"
        f" {seen.cpu_milliseconds_per_request:6.2f} ms/request"
        f" TTFT P50 {seen.ttft_p50_milliseconds:6.1f} P95 {seen.ttft_p95_milliseconds:6.1f} ms"
        f" {seen.requests_per_second:6.0f} requests/s",
        flush=True,
    )


def against(figure: str, unit: str, values: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each peer."""
    own = values.pop(OURS)
    return [row(figure, own, unit, f"{name} {PEERS.get(name, '')}".strip(), value) for name, value in values.items()]


def row(figure: str, value: float, unit: str, peer: str, peer_value: float) -> dict[str, Any]:
    ratio = round(value / peer_value, 2) if peer_value else None
    rounded = {"value": round(value, 2), "unit": unit, "peer": peer, "peer_value": round(peer_value, 2), "ratio": ratio}
    return {"figure": figure, **rounded}


def without_direct(seen: dict[str, Measured], value: Callable[[Measured], float]) -> dict[str, float]:
    return {name: value(each) for name, each in seen.items() if name != "direct"}


def paced_rows(seen: dict[str, Measured], load_name: str) -> list[dict[str, Any]]:
    """What a token costs, and how much later the first one comes than without a gateway."""
    direct = seen["direct"].ttft_p50_milliseconds
    return [
        *against(
            f"CPU per chunk, {load_name}", "us", without_direct(seen, lambda each: each.cpu_microseconds_per_chunk)
        ),
        *against(
            f"TTFT P50 added to direct, {load_name}",
            "ms",
            without_direct(seen, lambda each: each.ttft_p50_milliseconds - direct),
        ),
    ]


def streams(folder: Path, scale: float) -> Iterator[dict[str, Any]]:
    """Many at a time."""
    for concurrent, rounds, ramp in ((100, 8, EVENLY), (100, 8, AT_ONCE), (1000, 3, EVENLY)):
        total = max(concurrent, int(concurrent * rounds * scale))
        seen = compare(folder, pace=PACE, concurrent=concurrent, total=total, ramp=ramp)
        starting = "starting evenly" if ramp == EVENLY else "starting at once"
        yield from paced_rows(seen, f"{concurrent} streams {starting}, {PACE} between chunks")


def uvicorn(folder: Path, scale: float) -> Iterator[dict[str, Any]]:
    """From SGLang's own server."""
    total = int(256 * scale) + 16
    seen = compare(folder, pace=PACE, concurrent=16, total=total, ramp=EVENLY, served=uvicorn_backend)
    yield from paced_rows(seen, f"16 streams of uvicorn's, {PACE} between chunks")


def unpaced(folder: Path, scale: float) -> Iterator[dict[str, Any]]:
    """As fast as they go."""
    seen = compare(folder, pace="0s", concurrent=32, total=int(6000 * scale) + 64)
    for figure, unit, value in (
        ("requests per second, 32 at once", "requests/s", lambda each: each.requests_per_second),
        ("CPU per request", "ms", lambda each: each.cpu_milliseconds_per_request),
    ):
        yield from against(f"{figure}, chunks all at once", unit, without_direct(seen, value))


def memory(folder: Path, _: float) -> Iterator[dict[str, Any]]:
    """With silent streams."""
    seen = resident(folder, streams=SILENT_STREAMS)
    yield from against(f"resident memory, {SILENT_STREAMS} silent streams", "MiB", seen)


def pairs(folder: Path, scale: float) -> Iterator[dict[str, Any]]:
    """To prefill and decode workers."""
    seen = compare_pairs(folder, concurrent=16, total=int(400 * scale) + 32)
    for figure, value in (
        ("CPU per request", lambda each: each.cpu_milliseconds_per_request),
        ("TTFT P50", lambda each: each.ttft_p50_milliseconds),
        ("TTFT P95", lambda each: each.ttft_p95_milliseconds),
    ):
        yield from against(f"pairs of simulated engines, 16 at once: {figure}", "ms", without_direct(seen, value))


PARTS: dict[str, Callable[[Path, float], Iterator[dict[str, Any]]]] = {
    "streams": streams,
    "uvicorn": uvicorn,
    "unpaced": unpaced,
    "memory": memory,
    "pairs": pairs,
}


def write_results(rows: list[dict[str, Any]]) -> None:
    """What is written by hand below the table stays."""
    (RESULTS / "gateway.json").write_text(json.dumps({"seed": None, "rows": rows}, indent=2) + "\n")
    page = RESULTS / "gateway.md"
    notes = page.read_text().partition(NOTES)[2]
    about = (__doc__ or "").split("gateway.md.")[1]
    lines = ["# Gateway", "", about.strip(), ""]
    lines += ["| figure | value | unit | peer | peer value | ratio |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(str(each[column]) for column in COLUMNS)} |" for each in rows]
    commands = " · ".join(f"`{command}`" for command in dict.fromkeys(str(each["command"]) for each in rows))
    lines += ["", f"{commands}, Python {platform.python_version()}, {os.cpu_count()} cores shared by all of it."]
    page.write_text("\n".join(lines) + f"\n\n{NOTES}{notes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Share of the requests; less is quicker and rougher.")
    parser.add_argument("--only", choices=PARTS, help="Measure this part anew and keep the others' rows.")
    options = parser.parse_args()
    only = f" --only {options.only}" if options.only else ""
    own = {"command": f"python tests/bench/bench_gateway.py --scale {options.scale:g}{only}"}
    before = json.loads((RESULTS / "gateway.json").read_text())["rows"] if only else []
    prepare()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            if only and name != options.only:
                rows += [each for each in before if each["part"] == name]
            else:
                rows += [{**each, "part": name, **own} for each in part(Path(folder), options.scale)]
    write_results(rows)
    for each in rows:
        print(*(each[column] for column in COLUMNS))


if __name__ == "__main__":
    main()
