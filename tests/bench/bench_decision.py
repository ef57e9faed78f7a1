"""What a gateway's decision costs: the views of all workers and the route of one prompt, at 4 x 4 and 64 x 64 workers.

Run: `python tests/bench/bench_decision.py [--decisions N]`; under a minute. Writes decision.json and decision.md in
docs/results. Workers are Qwen3-8B on an H100, under load; between two decisions as many of them report a new state as
would at 10 lines a second each and 100 decisions a second, and every prompt is of another length. CPU time of the
thread, each decision the best of five rounds of the same sequence, so that other load on the machine counts little.
"In danger": the prompt has waited, so that all decode workers are compared too. "With a known prefix": all prefill
workers hold a fifth of the prompt, and one of them most of it. What decisions ask of a decode worker is worked out
when its line comes; that has rows of its own. Prefixes: a prompt of 12,000 tokens (48 kB) that each of the workers
holds another part of. "Request in to engines asked" is all of it, parser, body, prefix, queue, decision, both
messages, in a process without sockets (`without_sockets.py`), at 4 bytes a token. Peers: the least predicted TTFT of
all pairs, the ordinary way; what the paper says of itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import time
import timeit
from collections.abc import Iterator
from os import cpu_count
from pathlib import Path

import numpy as np
import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.without_sockets import Inside, request  # noqa: E402

from duet_engine.gateway.discovery import Member  # noqa: E402
from duet_engine.gateway.workers import Worker, Workers  # noqa: E402
from duet_engine.perf import catalog  # noqa: E402
from duet_engine.policy.baselines import LeastTTFT  # noqa: E402
from duet_engine.policy.deflect import DeflectionRule  # noqa: E402
from duet_engine.policy.dispatch import Dispatch  # noqa: E402
from duet_engine.policy.fleet import Prompt  # noqa: E402
from duet_engine.policy.prefix_index import PrefixIndex, text_blocks  # noqa: E402
from duet_engine.protocol import Role, StepKind, Work, WorkerInfo, WorkerState  # noqa: E402

RESULTS = ROOT / "docs" / "results"
SEED, WARM_UP, ROUNDS = 1, 100, 5
LINES_PER_SECOND, DECISIONS_PER_SECOND = 10, 100
PAPER_MICROSECONDS = 1000.0
"""Kairos at 2 x 2: "sub-millisecond"."""
LIMITS_MICROSECONDS = {4: 100.0, 64: 500.0}
PROMPTS_TOKENS = (1_000, 12_000, 40_000)
SITUATIONS = (
    (0.0, False, "not in danger"),
    (0.0, True, "with a known prefix, not in danger"),
    (0.9, False, "in danger"),
    (0.9, True, "with a known prefix, in danger"),
)
RULE, WINDOW_SECONDS = DeflectionRule(itl_seconds=0.05), 0.15


class Scene:
    """So many workers of each kind, whose states change."""

    def __init__(self, size: int) -> None:
        self.size, self.now = size, 1000.0
        self.dispatch = Dispatch("gateway-0")
        self.lines_seconds: list[float] = []
        """What each line of a decode worker took."""
        self.chance = random.Random(SEED)
        self.workers = Workers("gateway-0")
        roles = [Role.PREFILL] * size + [Role.DECODE] * size
        members = [
            Member(uid=f"{role}-{index}", name=f"{role}-{index}", url="http://127.0.0.1:1", role=role)
            for index, role in enumerate(roles)
        ]
        come, _ = self.workers.update(members)
        for worker in come:
            role = worker.member.role
            profile = catalog.profile("h100-sxm", "Qwen/Qwen3-8B", role=role)
            worker.describe(WorkerInfo(worker=worker.name, role=role, profile=profile))
            worker.heard(self.state(worker), self.now)
        self.all = come

    def state(self, worker: Worker) -> WorkerState:
        if worker.member.role is Role.PREFILL:
            queued = self.chance.choice((0, 0, 500, 2000, 6000))
            return WorkerState(
                worker=worker.name,
                role=Role.PREFILL,
                ready=True,
                step=StepKind.PREFILL if queued else StepKind.IDLE,
                queued_prefill_tokens=queued,
                work=Work(running=1 if queued else 0),
            )
        requests = self.chance.randrange(20, 110)
        context = requests * self.chance.randrange(500, 2000)
        return WorkerState(
            worker=worker.name,
            role=Role.DECODE,
            ready=True,
            deflection_active=True,
            step=StepKind.DECODE,
            decode_requests=requests,
            decode_context_tokens=context,
            kv_used_tokens=context,
            kv_capacity_tokens=354_944,
        )

    def pass_time(self) -> None:
        """Until the next decision: states come, and some of them are of workers that this gateway sent something."""
        self.now += 1 / DECISIONS_PER_SECOND
        for worker in self.chance.sample(self.all, max(1, 2 * self.size * LINES_PER_SECOND // DECISIONS_PER_SECOND)):
            self.heard(worker, self.state(worker))
        for worker in self.all:
            worker.state_received_at = max(worker.state_received_at, self.now - 1.0)

    def heard(self, worker: Worker, state: WorkerState) -> None:
        """As the gateway takes a line in: what decisions will ask of the worker is worked out at once."""
        started = time.thread_time()
        worker.heard(state, self.now)
        if worker.member.role is Role.DECODE:
            self.dispatch.prepare(worker.decode_view(), RULE)
            self.lines_seconds.append(time.thread_time() - started)

    def prompt(self, *, waited_seconds: float, known: bool = False) -> Prompt:
        """`known`: a fifth of it is kept by all prefill workers, and most of it by one of them."""
        tokens = self.chance.randrange(50, 12_000)
        warm = {f"{Role.PREFILL}-{index}": tokens // 5 for index in range(self.size)} if known else {}
        if known:
            warm[f"{Role.PREFILL}-{self.chance.randrange(self.size)}"] = 4 * tokens // 5
        return Prompt(
            tokens=tokens,
            waited_seconds=waited_seconds,
            ttft_objective_seconds=1.0,
            output_reserve_tokens=512,
            warm=warm,
        )


def decisions(size: int, count: int, *, waited_seconds: float, known: bool = False) -> Iterator[float]:
    """Microseconds of each."""
    scene = Scene(size)
    for index in range(WARM_UP + count):
        scene.pass_time()
        prompt = scene.prompt(waited_seconds=waited_seconds, known=known)
        started = time.thread_time()
        routes = scene.dispatch([prompt], scene.workers.fleet(scene.now), RULE, window_seconds=WINDOW_SECONDS)
        taken = time.thread_time() - started
        assert len(routes) == 1
        if index >= WARM_UP:
            yield taken * 1e6


def least_ttft(size: int) -> float:
    """Median microseconds of comparing all pairs."""
    scene, policy, taken = Scene(size), LeastTTFT(), []
    for _ in range(20):
        scene.pass_time()
        prompt = scene.prompt(waited_seconds=0.0)
        started = time.thread_time()
        policy.route(prompt, scene.workers.fleet(scene.now))
        taken.append((time.thread_time() - started) * 1e6)
    return float(np.median(taken))


def prefix_costs(workers: int) -> Iterator[tuple[str, float]]:
    """Microseconds of cutting a prompt into blocks, and of asking who holds how much of it."""
    text = random.Random(SEED).randbytes(48_000)
    blocks = text_blocks(text)
    index = PrefixIndex()
    for worker in range(workers):
        index.add(f"worker-{worker}", blocks[: 1 + worker * len(blocks) // workers])
    for name, call in (("cut", lambda: text_blocks(text)), ("match", lambda: index.match(blocks))):
        best = min(timeit.repeat(call, time.thread_time, number=50, repeat=7)) / 50
        yield f"prefix of a 12,000-token prompt: {name}, {workers} workers", best * 1e6


def end_to_end(prompt_tokens: int, count: int) -> tuple[float, float]:
    """Microseconds from a request's bytes to what both engines of a 4 x 4 fleet are sent (median), and from its
    client's end to what both are told (99th percentile)."""

    async def run() -> tuple[float, float]:
        inside, taken, cancelled = Inside([Role.PREFILL] * 4 + [Role.DECODE] * 4), [], []
        chance = random.Random(SEED)
        words = [f"{chance.getrandbits(24):06x} " for _ in range(4 * prompt_tokens // 7)]
        for index in range(WARM_UP + count):
            words[0] = f"{index:06x} "  # no two prompts begin alike
            sent, client = request("".join(words)), inside.client()
            started = time.thread_time()
            client.data_received(sent)
            while len(inside.asked) < 2:  # noqa: ASYNC110 - turns of the loop are part of it
                await asyncio.sleep(0)
            taken.append(time.thread_time() - started)
            inside.asked.clear()
            started = time.thread_time()
            client.connection_lost(None)
            while len(inside.asked) < 2:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            cancelled.append(time.thread_time() - started)
            inside.asked.clear()
        in_order = [np.array(seconds[WARM_UP:]) * 1e6 for seconds in (taken, cancelled)]
        return float(np.median(in_order[0])), float(np.percentile(in_order[1], 99))

    return uvloop.run(run())


def rows(count: int) -> Iterator[dict[str, object]]:
    command = f"python tests/bench/bench_decision.py --decisions {count}"
    for prompt_tokens in PROMPTS_TOKENS:
        asked, cancelled = end_to_end(prompt_tokens, count)
        about = f"4 x 4 workers, prompt of {prompt_tokens:,} tokens"
        for figure, value, peer, peer_value in (
            (f"request in to engines asked, {about}, P50", asked, "10 ms, the pace of a token", 10_000.0),
            (f"client gone to engines told, {about}, P99", cancelled, "limit", 100_000.0),
        ):
            yield {
                "figure": figure,
                "value": round(value, 1),
                "unit": "µs",
                "peer": peer,
                "peer_value": peer_value,
                "ratio": round(value / peer_value, 4),
                "command": command,
                "seed": SEED,
            }
    for figure, value in prefix_costs(64):
        yield {
            "figure": figure,
            "value": round(value, 1),
            "unit": "µs",
            "peer": "limit of a decision",
            "peer_value": LIMITS_MICROSECONDS[64],
            "ratio": round(value / LIMITS_MICROSECONDS[64], 3),
            "command": command,
            "seed": SEED,
        }
    for size, limit in LIMITS_MICROSECONDS.items():
        pairs = least_ttft(size)
        yield line_row(size, command)
        for waited_seconds, known, situation in SITUATIONS:
            rounds = [list(decisions(size, count, waited_seconds=waited_seconds, known=known)) for _ in range(ROUNDS)]
            taken = np.array(rounds).min(axis=0)
            figure = f"decision at {size} x {size} workers, prompt {situation}"
            peers = (
                (50, "all pairs (least TTFT), median", pairs),
                (99, "limit", limit),
                (99, "paper at 2 x 2", 1000.0),
            )
            for percentile, peer, peer_value in peers:
                value = float(np.percentile(taken, percentile))
                yield {
                    "figure": f"{figure}, P{percentile}",
                    "value": round(value, 1),
                    "unit": "µs",
                    "peer": peer,
                    "peer_value": round(peer_value, 1),
                    "ratio": round(value / peer_value, 3),
                    "command": command,
                    "seed": SEED,
                }


def line_row(size: int, command: str) -> dict[str, object]:
    """What one line of a decode worker takes in all, beside the decisions."""
    scene = Scene(size)
    for _ in range(WARM_UP + 100):
        scene.pass_time()
    value = float(np.median(scene.lines_seconds[len(scene.lines_seconds) // 2 :])) * 1e6
    share = value / 1e6 * LINES_PER_SECOND * size
    return {
        "figure": f"a decode worker's line taken in at {size} x {size} workers, median",
        "value": round(value, 1),
        "unit": "µs",
        "peer": f"a core's time between {size} workers' lines",
        "peer_value": round(value / share, 1),
        "ratio": round(share, 4),
        "command": command,
        "seed": SEED,
    }


def write(found: list[dict[str, object]]) -> None:
    (RESULTS / "decision.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    columns = ("figure", "value", "unit", "peer", "peer_value", "ratio")
    lines = ["# What a gateway's decision costs", "", (__doc__ or "").split("\n\n", 2)[1].replace("\n", " ")]
    lines += ["", "| figure | value | unit | peer | peer value | ratio |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(str(row[name]) for name in columns)} |" for row in found]
    system = f"Python {platform.python_version()}, {cpu_count()} cores"
    lines += ["", f"`{found[0]['command']}`, seed {SEED}, {system}.", ""]
    (RESULTS / "decision.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--decisions", type=int, default=500)
    write(list(rows(parser.parse_args().decisions)))


if __name__ == "__main__":
    main()
