"""The load generator as a process: everything that is asked of it is sent once, in time, and told."""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

from duet_dev.demo.client import CHAT, COMPLETIONS
from duet_dev.demo.load import arrivals_to_lines, ask_for
from duet_dev.demo.records import LINE, Pulse, Record
from duet_engine.traces import Arrival

BODIES = web.AppKey("bodies", list[dict[str, Any]])
DEV = Path(__file__).parents[3] / "dev"


async def answer(request: web.Request) -> web.StreamResponse:
    """As many tokens as asked for; one request in ten is refused."""
    body = await request.json()
    request.app[BODIES].append(body)
    if len(request.app[BODIES]) % 10 == 0:
        return web.Response(status=503)
    tokens = body["max_tokens"]
    usage = {"usage": {"completion_tokens": tokens}}
    if not body.get("stream"):
        return web.json_response(usage)
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(tokens):
        await response.write(b'data: {"choices": [{}]}\n\n')
    await response.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
    return response


async def replay(arrivals: list[Arrival]) -> tuple[list[dict[str, Any]], list[Record], list[Pulse]]:
    application = web.Application()
    application[BODIES] = []
    application.router.add_post(COMPLETIONS, answer)
    application.router.add_post(CHAT, answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "duet_dev.demo.load", f"--url={url}", "--model=tiny"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=DEV,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(arrivals_to_lines(arrivals)), 60)
    finally:
        await runner.cleanup()
    assert process.returncode == 0
    lines = [LINE.validate_json(line) for line in output.splitlines()]
    records = [line for line in lines if isinstance(line, Record)]
    return application[BODIES], records, [line for line in lines if isinstance(line, Pulse)]


async def test_every_arrival_is_sent_once_and_told() -> None:
    arrivals = [Arrival(index * 0.02, 10 + index, 1 + index % 5) for index in range(60)]
    bodies, records, pulses = await replay(arrivals)
    assert sorted(record.index for record in records) == list(range(60))
    assert len(bodies) == 60
    assert sum(record.failure is not None for record in records) == 6
    assert {record.failure for record in records} == {None, "HTTP 503: "}
    assert pulses[-1].sent == 60
    assert pulses[-1].in_flight == 0
    assert pulses[-1].loop_lag_p99_seconds > 0


async def test_requests_ask_for_what_the_trace_says() -> None:
    arrivals = [Arrival(0.0, 10 * (index + 1), 3) for index in range(30)]
    bodies, records, _ = await replay(arrivals)
    prompts = [body.get("prompt") or body["messages"][0]["content"] for body in bodies]
    assert sorted(len(str(prompt)) for prompt in prompts) == sorted(4 * arrival.input_tokens for arrival in arrivals)
    assert len({str(prompt)[:8] for prompt in prompts}) == 30
    assert all(body["ignore_eos"] is True for body in bodies)
    mix = Counter((record.endpoint, record.streamed) for record in records)
    assert mix[COMPLETIONS, True] > mix[CHAT, True] > mix[CHAT, False] + mix[COMPLETIONS, False] > 0


async def test_arrivals_wait_for_their_times() -> None:
    _, records, _ = await replay([Arrival(0.0, 10, 1), Arrival(2.0, 10, 1), Arrival(4.0, 10, 1)])
    sent = [record.sent_at_seconds for record in sorted(records, key=lambda record: record.index)]
    # Half of the gaps, because a busy machine may send the earlier one late.
    assert sent[1] - sent[0] > 1
    assert sent[2] - sent[1] > 1


def test_prompts_are_made_of_the_models_own_word_and_begin_differently() -> None:
    first, second = (json.loads(ask_for(index, Arrival(0.0, 4, 7), "tiny", word=" ba").body) for index in (0, 1))
    assert (first["prompt"], second["prompt"]) == (" 000 ba ba ba", " 001 ba ba ba")
