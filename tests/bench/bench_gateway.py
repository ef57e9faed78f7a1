"""CPU of one gateway process and the time it adds to the first token: P/D requests over simulated engines.

Run: `python tests/bench/bench_gateway.py [--seconds 30] [--rate 30]`. Writes docs/results/gateway.json and gateway.md.
The same requests first go through the gateway, then to a pair of engines directly, as the gateway would send them. CPU
seconds come from /proc/PID/stat of the gateway alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.fleet import EngineProcess, GatewayProcess, all_usable, demand, fleet  # noqa: E402

RESULTS = ROOT / "docs" / "results"
PROMPT_TOKENS, OUTPUT_TOKENS, WARM_UP_SECONDS = 300, 200, 5.0
GPU, MODEL = "h100-sxm", "meta-llama/Llama-3.1-8B"
ENGINES_KEEP_ALIVE_SECONDS = 5.0
DONE = b"data: [DONE]\n\n"


@dataclass
class Outcome:
    """What the load generator saw."""

    sent: int = 0
    whole: int = 0
    ttft_seconds: list[float] = field(default_factory=list)

    def ttft_milliseconds(self, share: float) -> float:
        ordered = sorted(self.ttft_seconds)
        return round(1e3 * ordered[int(share * (len(ordered) - 1))], 2)


Send = Callable[[aiohttp.ClientSession, int, Outcome], Awaitable[None]]


def cpu_seconds(process: GatewayProcess) -> float:
    fields = Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def body(number: int) -> dict[str, object]:
    words = random.Random(number)
    prompt = [words.randrange(32_000) for _ in range(PROMPT_TOKENS)]
    return {"prompt": prompt, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}


async def read(session: aiohttp.ClientSession, url: str, sent: dict[str, object], outcome: Outcome) -> None:
    started, first, last = time.monotonic(), None, b""
    async with session.post(url + "/v1/completions", json=sent) as response:
        async for chunk in response.content.iter_any():
            first = first or time.monotonic()
            last = (last + chunk)[-len(DONE) :]
    outcome.whole += response.status == 200 and last == DONE
    if first is not None:
        outcome.ttft_seconds.append(first - started)


def through(gateway: GatewayProcess) -> Send:
    async def send(session: aiohttp.ClientSession, number: int, outcome: Outcome) -> None:
        await read(session, gateway.url, body(number), outcome)

    return send


def direct(prefill: EngineProcess, decodes: list[EngineProcess]) -> Send:
    async def send(session: aiohttp.ClientSession, number: int, outcome: Outcome) -> None:
        bootstrap = {
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": prefill.bootstrap_port,
            "bootstrap_room": number + 1,
        }
        sent = body(number) | bootstrap
        decode = decodes[number % len(decodes)]
        await asyncio.gather(read(session, prefill.url, sent, Outcome()), read(session, decode.url, sent, outcome))

    return send


async def load(send: Send, *, rate: float, seconds: float, warmed: Callable[[], None]) -> Outcome:
    """Requests at `rate`; those of the warm-up aren't counted."""
    arrivals, counted, ignored, tasks = random.Random(1), Outcome(), Outcome(), []
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=ENGINES_KEEP_ALIVE_SECONDS - 2.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began, due, number, warm = time.monotonic(), 0.0, 0, False
        while (due := due + arrivals.expovariate(rate)) < WARM_UP_SECONDS + seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            if not warm and due >= WARM_UP_SECONDS:
                warm = True
                warmed()
            outcome = counted if warm else ignored
            outcome.sent += 1
            tasks.append(asyncio.create_task(send(session, number, outcome)))
            number += 1
        await asyncio.gather(*tasks)
    return counted


async def measure(folder: Path, *, rate: float, seconds: float) -> list[dict[str, object]]:
    with fleet(folder) as processes:
        options = ("--gpu", GPU, "--model", MODEL)
        prefill = processes.engine("prefill", *options)
        decodes = [processes.engine("decode", *options) for _ in range(3)]
        gateway = processes.gateway([prefill, *decodes], config={"model": {"id": MODEL}})
        async with aiohttp.ClientSession() as session:
            await all_usable(session, gateway, 4)
        cpu_before: list[float] = []
        routed = await load(
            through(gateway), rate=rate, seconds=seconds, warmed=lambda: cpu_before.append(cpu_seconds(gateway))
        )
        cpu = cpu_seconds(gateway) - cpu_before[0]
        async with aiohttp.ClientSession() as session:
            lag_seconds = (await demand(session, gateway))["loop_lag_p99_seconds"]
        peer = await load(direct(prefill, decodes), rate=rate, seconds=seconds, warmed=lambda: None)
    load_text = f"{rate:g} requests/s of {PROMPT_TOKENS} in, {OUTPUT_TOKENS} out"
    return [
        row(f"CPU at {load_text}", round(cpu / routed.sent * rate, 3), "cores", "limit", 0.7),
        row("CPU per request", round(1e3 * cpu / routed.sent, 2), "ms", "limit", round(700 / rate, 2)),
        row("TTFT P50", routed.ttft_milliseconds(0.5), "ms", "direct", peer.ttft_milliseconds(0.5)),
        row("TTFT P95", routed.ttft_milliseconds(0.95), "ms", "direct", peer.ttft_milliseconds(0.95)),
        row("loop lag P99", round(1e3 * lag_seconds, 2), "ms", "limit", 20.0),
        row("requests answered whole", routed.whole, "requests", "sent", routed.sent),
    ]


def row(figure: str, value: float, unit: str, peer: str, peer_value: float) -> dict[str, object]:
    ratio = round(value / peer_value, 3) if peer_value else None
    return {"figure": figure, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio}


def write_results(rows: list[dict[str, object]], command: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "gateway.json").write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n")
    lines = ["# Gateway", "", "| figure | value | unit | peer | peer value | ratio |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(str(value) for value in each.values())} |" for each in rows]
    lines += ["", f"`{command}`, Python {platform.python_version()}, {os.cpu_count()} cores."]
    (RESULTS / "gateway.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder), rate=options.rate, seconds=options.seconds))
    write_results(rows, f"python tests/bench/bench_gateway.py --seconds {options.seconds:g} --rate {options.rate:g}")
    for each in rows:
        print(*each.values())
    sys.exit(0 if rows[-1]["ratio"] == 1.0 else 1)


if __name__ == "__main__":
    main()
