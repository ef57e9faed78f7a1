"""Hostile requests by the hundred thousand against a gateway process: nothing may crash, hang, leak or get through.

Run: `make fuzz-gateway`, or `python tests/bench/fuzz_gateway.py [--requests 100000] [--seed 0]`. The worker behind the
gateway accepts nothing but what the gateway itself would send. Writes docs/results/fuzz.json and fuzz.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.fleet import Fleet, GatewayProcess, all_usable, ask, completion, demand, eventually  # noqa: E402
from tests.support.fuzz import Seen, fuzz  # noqa: E402
from tests.support.strict_engine import StrictEngine  # noqa: E402

RESULTS = ROOT / "docs" / "results"
OPTIONS = ("--header-timeout-seconds", "0.5", "--body-timeout-seconds", "0.5")
ROUND = 10_000
MOST_GROWTH_MIB = 32.0


class Fuzzed:
    """One gateway before one strict worker."""

    def __init__(self, gateway: GatewayProcess, engine: StrictEngine, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.engine = engine
        self._session = session

    async def round(self, seeds: range, *, concurrent: int) -> Seen:
        """Some requests; afterwards everything that they began has ended, and a good request is served."""
        seen = await fuzz(self.gateway.port, seeds, concurrent=concurrent)
        await eventually(self._calm, "everything to have ended")
        answer = await ask(self._session, self.gateway.url, completion(1))
        assert answer.whole, f"a good request after the bad ones: {answer}"
        return seen

    async def _calm(self) -> bool:
        document = await demand(self._session, self.gateway)
        return bool(document["inflight_requests"] == document["waiting_requests"] == 0)

    def verify(self, seen: Seen) -> None:
        """What must hold after any number of rounds."""
        log = self.gateway.log.read_text()
        assert self.gateway.popen.poll() is None, f"the gateway ended: {log[-3000:]}"
        assert not re.search(r"Traceback|internal error| ERROR | CRITICAL ", log), log[-3000:]
        assert seen.statuses["500"] == 0, seen.statuses
        assert not seen.hung, f"these seeds hung: {seen.hung[:20]}"
        assert not self.engine.complaints, self.engine.complaints[:5]

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.gateway.popen.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def sockets(self) -> int:
        """Open file descriptors of the gateway."""
        return len(list(Path(f"/proc/{self.gateway.popen.pid}/fd").iterdir()))


async def started(processes: Fleet, engine: StrictEngine, session: aiohttp.ClientSession, folder: Path) -> Fuzzed:
    """A gateway that knows its strict worker."""
    await engine.start()
    config = folder / "fuzzed.json"
    config.write_text(json.dumps({"workers": [{"url": engine.url, "role": "unified", "name": "strict"}]}))
    gateway = processes.gateway_process("--config", str(config), *OPTIONS)
    await all_usable(session, gateway, 1)
    return Fuzzed(gateway, engine, session)


async def run(requests: int, first_seed: int, folder: Path) -> list[dict[str, Any]]:
    processes, engine, total = Fleet(folder), StrictEngine(), Seen()
    resident: list[float] = []
    began = time.monotonic()
    try:
        async with aiohttp.ClientSession() as session:
            fuzzed = await started(processes, engine, session, folder)
            for start in range(first_seed, first_seed + requests, ROUND):
                seen = await fuzzed.round(range(start, min(start + ROUND, first_seed + requests)), concurrent=256)
                total.statuses += seen.statuses
                total.hung += seen.hung
                fuzzed.verify(total)
                resident.append(fuzzed.resident_mib())
                print(f"{total.total} requests, {time.monotonic() - began:.0f} s, {resident[-1]:.0f} MiB", flush=True)
            await asyncio.sleep(6.0)  # kept connections to the worker end by themselves
            sockets = fuzzed.sockets()
    finally:
        processes.close()
        engine.close()
    growth = resident[-1] - resident[min(1, len(resident) - 1)]
    assert growth < MOST_GROWTH_MIB, resident
    return rows(total, engine.served, growth=growth, sockets=sockets)


def rows(total: Seen, served: Counter[str], *, growth: float, sockets: int) -> list[dict[str, Any]]:
    found = [
        row("hostile requests", total.total, "requests"),
        row("hung connections", len(total.hung), "connections"),
        row("bytes at the worker that weren't understood", 0, "bytes"),
        row("requests that reached the worker", served.total() - served["/abort_request"], "requests"),
        row("memory at the end over that after the second ten thousand", round(growth, 1), "MiB"),
        row("open files a few seconds after the end", sockets, "files"),
    ]
    return found + [row(f"answered {status}", count, "requests") for status, count in sorted(total.statuses.items())]


def row(figure: str, value: float, unit: str) -> dict[str, Any]:
    return {"figure": figure, "value": value, "unit": unit}


def write(found: list[dict[str, Any]], command: str, seed: int) -> None:
    document = {"command": command, "seed": seed, "rows": found}
    (RESULTS / "fuzz.json").write_text(json.dumps(document, indent=2) + "\n")
    lines = [
        "# Hostile requests",
        "",
        "No crash, no hang, no leak, nothing past the parser: the run fails otherwise.",
        "",
    ]
    lines += ["| figure | value | unit |", "|---|---|---|"]
    lines += [f"| {each['figure']} | {each['value']} | {each['unit']} |" for each in found]
    lines += ["", "`left` are clients that reset their connection; `-` are connections that ended without an answer."]
    lines += ["", f"`{command}`, seed {seed}, Python {platform.python_version()}."]
    (RESULTS / "fuzz.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(options.requests, options.seed, Path(folder)))
    write(
        found, f"python tests/bench/fuzz_gateway.py --requests {options.requests} --seed {options.seed}", options.seed
    )
    for each in found:
        print(*each.values())


if __name__ == "__main__":
    main()
