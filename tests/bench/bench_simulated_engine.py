"""CPU of twelve simulated engines under load: four prefill, eight decode workers, P/D requests, two state readers each.

Run: `python tests/bench/bench_simulated_engine.py [--seconds 30] [--rate 30]`. Writes simulated_engine.json and
simulated_engine.md in docs/results. CPU seconds come from /proc/PID/stat of the engines alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PREFILL_WORKERS, DECODE_WORKERS, STATE_READERS = 4, 8, 2
PROMPT_TOKENS, OUTPUT_TOKENS = 1000, 200
LISTENS = re.compile(r"listens on 127\.0\.0\.1:(\d+), bootstrap port (\d+)")


@dataclass
class Worker:
    """One engine process."""

    role: str
    process: subprocess.Popen[str]
    port: int
    bootstrap_port: int

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Outcome:
    """What the load generator saw."""

    sent: int = 0
    whole: int = 0
    failures: list[str] = field(default_factory=list)


def start(role: str, gpu: str) -> Worker:
    command = [sys.executable, "-m", "duet_engine.simulated_engine", "--role", role, "--gpu", gpu]
    command += ["--port", "0", "--bootstrap-port", "0", "--cold-start-seconds", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = LISTENS.search(process.stdout.readline())
    assert found is not None
    return Worker(role, process, int(found[1]), int(found[2]))


async def one_request(
    session: aiohttp.ClientSession, workers: tuple[Worker, Worker], room: int, outcome: Outcome
) -> None:
    prefill, decode = workers
    words = random.Random(room)
    body = {
        "prompt": [words.randrange(32_000) for _ in range(PROMPT_TOKENS)],
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": room,
    }

    async def half(worker: Worker) -> bytes:
        async with session.post(f"http://127.0.0.1:{worker.port}/v1/completions", json=body) as response:
            return await response.read()

    outcome.sent += 1
    _, answer = await asyncio.gather(half(prefill), half(decode))
    tokens = answer.count(b'"text_completion"')
    if tokens == OUTPUT_TOKENS and answer.endswith(b"data: [DONE]\n\n"):
        outcome.whole += 1
    else:
        outcome.failures.append(f"{tokens} tokens: {answer[-200:]!r}")


async def read_state(session: aiohttp.ClientSession, worker: Worker) -> None:
    async with session.get(f"http://127.0.0.1:{worker.port}/duet/state?stream=1") as response:
        async for _ in response.content:
            pass


async def load(workers: list[Worker], *, rate: float, seconds: float, seed: int) -> tuple[Outcome, float, float]:
    """Requests at `rate` for 5 s to warm up and then `seconds`; outcome, CPU and wall seconds of the latter."""
    prefills = [worker for worker in workers if worker.role == "prefill"]
    decodes = [worker for worker in workers if worker.role == "decode"]
    arrivals, outcome, tasks = random.Random(seed), Outcome(), []
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        readers = [asyncio.create_task(read_state(session, worker)) for worker in workers for _ in range(STATE_READERS)]
        began, cpu_before, warm_until = time.monotonic(), 0.0, 5.0
        due, measured_from = 0.0, None
        for room in range(10**9):
            due += arrivals.expovariate(rate)
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            if measured_from is None and due >= warm_until:
                measured_from, cpu_before = time.monotonic(), sum(worker.cpu_seconds() for worker in workers)
            if due >= warm_until + seconds:
                break
            pair = (prefills[room % len(prefills)], decodes[room % len(decodes)])
            tasks.append(asyncio.create_task(one_request(session, pair, room, outcome)))
        cpu = sum(worker.cpu_seconds() for worker in workers) - cpu_before
        wall = time.monotonic() - (measured_from or began)
        await asyncio.gather(*tasks)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return outcome, cpu, wall


def write_results(rows: list[dict[str, object]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "simulated_engine.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = [
        "# Simulated engine",
        "",
        "| figure | value | unit | peer | peer value | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['figure']} | {row['value']} | {row['unit']} | {row['peer']} | {row['peer_value']} | {row['ratio']} |"
        for row in rows
    ]
    lines += [
        "",
        f"`{rows[0]['command']}`, seed {rows[0]['seed']}, Python {platform.python_version()}, {os.cpu_count()} cores.",
    ]
    (RESULTS / "simulated_engine.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--gpu", default="h100-sxm")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    workers: list[Worker] = []
    try:
        workers += [start("prefill", options.gpu) for _ in range(PREFILL_WORKERS)]
        workers += [start("decode", options.gpu) for _ in range(DECODE_WORKERS)]
        starts = sum(worker.cpu_seconds() for worker in workers) / len(workers)
        outcome, cpu, wall = asyncio.run(load(workers, rate=options.rate, seconds=options.seconds, seed=options.seed))
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.wait(30)
    command = f"python tests/bench/bench_simulated_engine.py --seconds {options.seconds:g} --rate {options.rate:g}"
    shared = {"command": command, "seed": options.seed}

    def row(figure: str, value: float, unit: str, peer: str, peer_value: float) -> dict[str, object]:
        ratio = round(value / peer_value, 3) if peer_value else None
        return {
            "figure": figure,
            "value": value,
            "unit": unit,
            "peer": peer,
            "peer_value": peer_value,
            "ratio": ratio,
        } | shared

    figure = (
        f"CPU of 12 engines at {options.rate:g} requests/s ({PROMPT_TOKENS} in, {OUTPUT_TOKENS} out, {options.gpu})"
    )
    rows = [
        row(figure, round(cpu / wall, 3), "cores", "limit", 1.0),
        row("CPU to start one engine", round(starts, 2), "CPU s", "limit", 0.5),
        row("requests answered whole", outcome.whole, "requests", "sent", outcome.sent),
    ]
    write_results(rows)
    for line in rows:
        print(line["figure"], line["value"], line["unit"])
    for failure in outcome.failures[:5]:
        print("FAILED", failure)
    sys.exit(0 if outcome.whole == outcome.sent else 1)


if __name__ == "__main__":
    main()
