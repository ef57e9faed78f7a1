"""A recorded run of real SGLang workers: what was asked, when its answer came, and every step of every worker.

Invariant: the load is bounded and the same for the same seed; no two prompts begin alike, so no cache of prefixes
shortens any. Moments are of the machine's monotonic clock, as those of the step logs.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests.support.sglang_servers import SglangServer, Wanted, get, running_servers

FIRST_TOKEN, VOCABULARY = 3, 512
"""Of the tiny models: those below are special."""
DIFFERENT_PROMPTS = VOCABULARY - FIRST_TOKEN
INPUT_TOKENS = (8, 30, 80, 150, 300, 500, 800, 1200)
FULL_CHUNK_TOKENS = 512
OPTIONS = (
    *("--disable-overlap-schedule", "--chunked-prefill-size", str(FULL_CHUNK_TOKENS)),
    *("--max-total-tokens", "65536"),
)
"""So much KV that nothing is refused."""
REQUEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request to send."""

    rid: str
    at_seconds: float
    """After the first."""
    prompt: tuple[int, ...]
    output_tokens: int
    decode: str
    prefill: str | None
    """None: deflected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What became of it, as its client saw it."""

    rid: str
    input_tokens: int
    output_tokens: int
    decode: str
    prefill: str | None
    sent_at: float
    token_times: tuple[float, ...]
    """When each token came."""

    @property
    def ttft_seconds(self) -> float:
        return self.token_times[0] - self.sent_at

    @property
    def tpot_seconds(self) -> float:
        return (self.token_times[-1] - self.token_times[0]) / (self.output_tokens - 1)


def bursts(count: int, *, seed: int, decodes: Sequence[str], burst_seconds: float = 1.6) -> list[Asked]:
    """Requests in bursts of one to ten, two of five of them deflected."""
    assert count <= DIFFERENT_PROMPTS
    chance = random.Random(seed)
    firsts = chance.sample(range(FIRST_TOKEN, VOCABULARY), count)
    asked: list[Asked] = []
    began = 0.0
    while len(asked) < count:
        for _ in range(min(chance.randint(1, 10), count - len(asked))):
            length = round(chance.choice(INPUT_TOKENS) * chance.uniform(0.7, 1.3))
            rest = [chance.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(length - 1)]
            asked.append(
                Asked(
                    rid=f"replay-{len(asked):04}",
                    at_seconds=began + chance.uniform(0, 0.2 * burst_seconds),
                    prompt=(firsts[len(asked)], *rest),
                    output_tokens=chance.randint(4, 24),
                    decode=chance.choice(decodes),
                    prefill="prefill" if chance.random() < 0.6 else None,
                )
            )
        began += burst_seconds * chance.uniform(0.5, 1.5)
    return sorted(asked, key=lambda each: each.at_seconds)


def record(folder: Path, asked: Sequence[Asked], *, decodes: Sequence[str]) -> None:
    """Start a prefill and some decode workers, send everything, and leave logs, profiles and answers in `folder`."""
    names = ["prefill", *decodes]
    wanted = {
        name: Wanted(
            "prefill" if name == "prefill" else "decode",
            OPTIONS,
            environment={"DUET_STEP_LOG": str(folder / f"{name}.steps")},
        )
        for name in names
    }
    with running_servers(folder, wanted) as servers:
        answers = asyncio.run(_send_all(servers, asked))
        for name in names:
            info = json.loads(get(servers[name], "/duet/info")[1])
            (folder / f"{name}.profile.json").write_text(json.dumps(info["profile"]))
        time.sleep(1.5)  # the logs reach the disk when their workers fall idle
    (folder / "answers.json").write_text(json.dumps([asdict(each) for each in answers]))


def read_answers(folder: Path) -> list[Answered]:
    rows: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    return [Answered(**{**row, "token_times": tuple(row["token_times"])}) for row in rows]


async def _send_all(servers: Mapping[str, SglangServer], asked: Sequence[Asked]) -> list[Answered]:
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):
        start = time.monotonic() + 0.2
        running = []
        for each in asked:
            await asyncio.sleep(max(0.0, start + each.at_seconds - time.monotonic()))
            running.append(tasks.create_task(_send(session, servers, each)))
    return [task.result() for task in running]


async def _send(session: aiohttp.ClientSession, servers: Mapping[str, SglangServer], each: Asked) -> Answered:
    """As a gateway does it: to both workers of a pair at once, and the decode worker's answer counts."""
    sampling = {"max_new_tokens": each.output_tokens, "temperature": 0, "ignore_eos": True}
    body = {"rid": each.rid, "input_ids": list(each.prompt), "sampling_params": sampling, "stream": True}
    sent_at = time.monotonic()
    if each.prefill is None:
        dispatch = {"gateway": "g", "sequence": int(each.rid.split("-")[1]), "deflected": True}
        times = await _stream(session, servers[each.decode], body | {"duet": dispatch})
    else:
        pair = servers[each.prefill].pair_fields(int(each.rid.split("-")[1]) + 1000)
        first, times = await asyncio.gather(
            _stream(session, servers[each.prefill], body | pair), _stream(session, servers[each.decode], body | pair)
        )
        assert len(first) >= 1
    assert len(times) == each.output_tokens, f"{each.rid}: {len(times)} tokens of {each.output_tokens}"
    return Answered(
        rid=each.rid,
        input_tokens=len(each.prompt),
        output_tokens=each.output_tokens,
        decode=each.decode,
        prefill=each.prefill,
        sent_at=sent_at,
        token_times=tuple(times),
    )


async def _stream(session: aiohttp.ClientSession, server: SglangServer, body: Mapping[str, Any]) -> list[float]:
    """When each token came; an event may bring several."""
    times: list[float] = []
    async with session.post(f"{server.url}/generate", json=dict(body)) as response:
        assert response.status == 200, f"{body['rid']}: {response.status} {await response.text()}"
        async for line in response.content:
            if line.startswith(b"data: {"):
                now, event = time.monotonic(), json.loads(line[len(b"data: ") :])
                assert "meta_info" in event, f"{body['rid']}: {event}"
                times += [now] * (event["meta_info"]["completion_tokens"] - len(times))
    return times
