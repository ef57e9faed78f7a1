"""Deflection on live engines: two prefill and two decode workers under bursts, by gateway, and what the simulator says.

Run: `python tests/bench/bench_deflection.py`; four minutes on a quiet machine. Writes deflection.json and
deflection.md in docs/results; with `--seconds N`, a shorter load, it only prints. The engines are simulated ones,
with the step times of a seventh of an H100, as processes of their own. The same seeded requests go through this
gateway with deflection, without it, and through the two Rust routers of bench_gateway.py. The simulator plays the
first two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "dev"))

from tests.bench import gateway_peers  # noqa: E402
from tests.support.bench_rows import Row, row, write_results  # noqa: E402
from tests.support.fleet import MODEL, Fleet, all_usable, completion, fleet  # noqa: E402

from duet_dev.demo.client import Ask, send  # noqa: E402
from duet_dev.demo.records import Record  # noqa: E402
from duet_engine.perf.replica import replica_from_document  # noqa: E402
from duet_engine.policy.deflect import DeflectionMode, DeflectionRule  # noqa: E402
from duet_engine.protocol import Role, WorkerInfo  # noqa: E402
from duet_engine.simulator.lengths import Exponential, LogNormal  # noqa: E402
from duet_engine.simulator.run import simulate  # noqa: E402
from duet_engine.simulator.scenario import NO_NOISE, EngineLimits, LocalPrefill, Pool, Scenario  # noqa: E402
from duet_engine.simulator.synthetic import Rate, Traffic  # noqa: E402
from duet_engine.simulator.workload import Request  # noqa: E402
from duet_engine.slo import Objective, judge  # noqa: E402

COMMAND = "python tests/bench/bench_deflection.py"
SEED = 3
SECONDS = 40.0
RATE = 6.5
"""Requests a second; three times as many for 8 s of each 20."""
ENGINE = ("--gpu", "h100-1g.20gb", "--model", "Qwen/Qwen3-4B", "--served-name", MODEL)
"""A seventh of a GPU: so slow that two cores can play it, and that bursts pass what two prefill workers can do."""
OBJECTIVE = Objective(ttft_seconds=1.0, itl_seconds=0.05)
OWN = {"Duet": "Auto", "Duet, deflection off": "Off"}
PEERS = ("smg", "sglang-router")


@dataclass(frozen=True)
class Seen:
    """One run."""

    ttft_p50: float
    ttft_p95: float
    attainment: float
    deflected: float


def coming(seconds: float) -> list[Request]:
    course = Rate.bursts(RATE, seconds=seconds, factor=3.0, every_seconds=20.0, lasting_seconds=8.0)
    traffic = Traffic(rate=course, input_tokens=LogNormal(1800.0, 0.8), output_tokens=Exponential(50.0), variation=1.0)
    return list(traffic.requests(SEED))


# --- live ---


def ask_for(index: int, request: Request) -> Ask:
    """Text of one token for each four bytes, as simulated engines count; no two prompts begin alike."""
    prompt = f" {index % 1000:03d}" + " tok" * (request.input_tokens - 1)
    usage = {"stream_options": {"include_usage": True}}
    return Ask(
        index=index,
        endpoint="/v1/completions",
        streamed=True,
        body=json.dumps(completion(request.output_tokens, prompt=prompt, **usage)).encode(),
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
    )


async def played(url: str, requests: list[Request]) -> Seen:
    asks = [ask_for(index, request) for index, request in enumerate(requests)]
    timeout, connector = aiohttp.ClientTimeout(total=120), aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector, headers=headers) as session:
        started = time.monotonic()

        async def later(ask: Ask, request: Request) -> Record:
            await asyncio.sleep(max(started + request.arrival_seconds - time.monotonic(), 0.0))
            return await send(session, ask)

        records = await asyncio.gather(*(later(*each) for each in zip(asks, requests, strict=True)))
    met = [judge(record.outcome(OBJECTIVE, 0.0), OBJECTIVE).met for record in records]
    ttfts = [record.ttft_seconds if record.ttft_seconds is not None else 120.0 for record in records]
    return Seen(
        float(np.percentile(ttfts, 50)),
        float(np.percentile(ttfts, 95)),
        float(np.mean(met)),
        float(np.mean([record.deflected for record in records])),
    )


@contextmanager
def engines(folder: Path) -> Iterator[tuple[Fleet, list[Any]]]:
    """Anew for each gateway, so that no cache helps the later ones."""
    with fleet(folder) as processes:
        roles = ("prefill", "prefill", "decode", "decode")
        found = [processes.engine(role, *ENGINE, name=f"{role}-{index}") for index, role in enumerate(roles)]
        yield processes, found


async def through_own(processes: Fleet, workers: list[Any], mode: str, requests: list[Request]) -> Seen:
    slo = {"ttftMilliseconds": 1000 * OBJECTIVE.ttft_seconds, "itlMilliseconds": 1000 * OBJECTIVE.itl_seconds}
    gateway = processes.gateway(workers, config={"slo": slo, "deflection": {"mode": mode}})
    async with aiohttp.ClientSession() as session:
        await all_usable(session, gateway, len(workers))
    return await played(gateway.url, requests)


def through_peer(folder: Path, name: str, workers: list[Any], requests: list[Request]) -> Seen:
    arguments = ["--pd-disaggregation"]
    for worker in workers:
        port = [str(worker.bootstrap_port)] if worker.role == "prefill" else []
        arguments += [f"--{worker.role}", worker.url, *port]
    with gateway_peers.router(folder, name, arguments) as server:
        return asyncio.run(played(server.url, requests))


# --- simulated ---


async def info_of(worker: Any) -> WorkerInfo:
    async with aiohttp.ClientSession() as session, session.get(worker.url + "/duet/info") as response:
        return WorkerInfo.read(await response.read())


def pool(info: WorkerInfo, role: Role, *, deflects: bool) -> Pool:
    profile = info.profile
    return Pool(
        role=role,
        steps=replica_from_document(profile.replica),
        kv_capacity_tokens=profile.kv_capacity_tokens,
        replicas=2,
        limits=EngineLimits(
            max_running_requests=profile.max_running_requests,
            chunked_prefill_tokens=profile.chunked_prefill_tokens,
            graph_batch_sizes=(),
        ),
        local_prefill=LocalPrefill.SAFE if deflects and role is Role.DECODE else None,
    )


def in_simulator(prefill: WorkerInfo, decode: WorkerInfo, mode: str, requests: list[Request]) -> Seen:
    deflects = mode != "Off"
    result = simulate(
        Scenario(
            prefill=pool(prefill, Role.PREFILL, deflects=deflects),
            decode=pool(decode, Role.DECODE, deflects=deflects),
            objective=OBJECTIVE,
            rule=DeflectionRule(itl_seconds=OBJECTIVE.itl_seconds, mode=DeflectionMode(mode)),
            noise=NO_NOISE,
            seed=SEED,
        ),
        requests,
    )
    return Seen(
        result.ttft_percentile(50), result.ttft_percentile(95), result.attainment or 0.0, result.deflected_share
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    seconds = parser.parse_args().seconds
    requests = coming(seconds)
    gateway_peers.prepare()
    seen: dict[str, Seen] = {}
    for name in (*OWN, *PEERS):
        with tempfile.TemporaryDirectory() as home, engines(Path(home)) as (processes, workers):
            if name in OWN:
                seen[name] = asyncio.run(through_own(processes, workers, OWN[name], requests))
                infos = [asyncio.run(info_of(worker)) for worker in workers]
                seen[f"{name}, simulated"] = in_simulator(infos[0], infos[2], OWN[name], requests)
            else:
                seen[name] = through_peer(Path(home), name, workers, requests)
        print(name, seen[name], seen.get(f"{name}, simulated"), flush=True)
    if seconds == SECONDS:
        write_results(rows_of(seen), name="deflection", title="Deflection on live engines", command=COMMAND, seed=SEED)


def rows_of(seen: dict[str, Seen]) -> list[Row]:
    """Duet beside each other way, and beside itself in the simulator."""
    rows = []
    ours = seen["Duet"]
    for name, other in seen.items():
        live = seen[name.removesuffix(", simulated")] if name.endswith(", simulated") else ours
        figure = f"{name.removesuffix(', simulated')}: " if live is not ours else ""
        if other is ours:
            continue
        rows += [
            row(f"{figure}P50 TTFT", round(live.ttft_p50, 4), "s", name, round(other.ttft_p50, 4)),
            row(f"{figure}P95 TTFT", round(live.ttft_p95, 4), "s", name, round(other.ttft_p95, 4)),
            row(f"{figure}attainment", round(100 * live.attainment, 1), "%", name, round(100 * other.attainment, 1)),
        ]
    rows.append(row("deflected prompts", round(100 * ours.deflected, 1), "%"))
    return rows


if __name__ == "__main__":
    main()
