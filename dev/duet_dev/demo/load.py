"""The load generator, a process of its own: replays arrivals against one address and reports each request as a line.

Invariant: bounded in number (requests in flight) and in time (each request, and so the whole run); whatever the bounds
cut off is reported as a failed request. It reads its arrivals from standard input, writes `records` lines to standard
output, and measures how late its own event loop runs, so that a slow generator can't pass for a slow server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

import aiohttp
import uvloop

from duet_dev.demo.client import CHAT, COMPLETIONS, Ask, send
from duet_dev.demo.records import Pulse, Record
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.traces import Arrival
from duet_operator.signals.totals import quantile

START_DELAY_SECONDS = 0.5
PULSE_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15.0
WORD = " the"
"""One token for the tokenizers of the usual models, and for the simulated engine, which counts four bytes as one. Each
prompt begins with a number of its own, so that no cache of prefixes can serve it."""
UNSTREAMED_EVERY = 25
CHAT_EVERY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Where to send and how much at most."""

    url: str
    model: str
    word: str = WORD
    """One token of the model's tokenizer."""
    most_in_flight: int = 2000
    request_timeout_seconds: float = 120.0


def arrivals_to_lines(arrivals: Iterable[Arrival]) -> bytes:
    """What this program reads from standard input."""
    return b"".join(json.dumps(astuple(arrival)).encode() + b"\n" for arrival in arrivals)


def arrivals_from_lines(lines: Iterable[bytes]) -> Iterator[Arrival]:
    return (Arrival(*json.loads(line)) for line in lines)


def ask_for(index: int, arrival: Arrival, model: str, *, word: str = WORD) -> Ask:
    """The request for one arrival: mostly streamed completions, some chat, a few answers in one piece."""
    streamed = index % UNSTREAMED_EVERY != UNSTREAMED_EVERY - 1
    endpoint = CHAT if index % CHAT_EVERY == CHAT_EVERY - 1 else COMPLETIONS
    text = f" {index % 1000:03d}" + word * (arrival.input_tokens - 1)
    prompt = {"messages": [{"role": "user", "content": text}]} if endpoint == CHAT else {"prompt": text}
    options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    body = {"model": model, "max_tokens": arrival.output_tokens, "ignore_eos": True, **options, **prompt}
    return Ask(
        index=index,
        endpoint=endpoint,
        streamed=streamed,
        body=json.dumps(body).encode(),
        input_tokens=arrival.input_tokens,
        output_tokens=arrival.output_tokens,
    )


class LoadGenerator:
    """Sends arrivals at their times and writes what became of them."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._sent = 0
        self._in_flight = 0
        self._lag = LoopLag()

    async def run(self, arrivals: Sequence[Arrival]) -> None:
        """Until every arrival has ended, well or badly."""
        options = self._options
        self._lag.start()
        pulse = asyncio.create_task(self._pulse())
        timeout = aiohttp.ClientTimeout(total=options.request_timeout_seconds, sock_connect=10)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession(options.url, connector=connector, timeout=timeout, headers=headers) as session,
            asyncio.TaskGroup() as requests,
        ):
            loop = asyncio.get_running_loop()
            start = loop.time() + START_DELAY_SECONDS
            for index, arrival in enumerate(arrivals):
                await asyncio.sleep(max(0.0, start + arrival.time_seconds - loop.time()))
                requests.create_task(self._send(session, ask_for(index, arrival, options.model, word=options.word)))
        pulse.cancel()
        self._lag.stop()
        self._write_pulse()

    async def _send(self, session: aiohttp.ClientSession, ask: Ask) -> None:
        self._sent += 1
        if self._in_flight >= self._options.most_in_flight:
            _write(_not_sent(ask, f"not sent: {self._in_flight} requests in flight already"))
            return
        self._in_flight += 1
        try:
            _write(await send(session, ask))
        finally:
            self._in_flight -= 1

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            self._write_pulse()

    def _write_pulse(self) -> None:
        p99 = quantile(self._lag.total.document(), 0.99) or 0.0
        _write(Pulse(time_seconds=time.time(), sent=self._sent, in_flight=self._in_flight, loop_lag_p99_seconds=p99))


def _not_sent(ask: Ask, failure: str) -> Record:
    return Record(
        index=ask.index,
        endpoint=ask.endpoint,
        streamed=ask.streamed,
        sent_at_seconds=time.time(),
        duration_seconds=0.0,
        input_tokens=ask.input_tokens,
        output_tokens=ask.output_tokens,
        failure=failure,
    )


def _write(line: Record | Pulse) -> None:
    sys.stdout.write(line.model_dump_json(exclude_none=True) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay arrivals (lines of JSON on standard input) against a server.")
    parser.add_argument("--url", required=True, help="address of the OpenAI endpoint, such as http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="model name to ask for")
    parser.add_argument("--word", default=WORD, help="what prompts are made of: one token of the model's")
    parser.add_argument("--request-timeout-seconds", type=float, default=120.0)
    chosen = parser.parse_args()
    options = LoadOptions(
        url=chosen.url,
        model=chosen.model,
        word=chosen.word,
        request_timeout_seconds=chosen.request_timeout_seconds,
    )
    uvloop.run(LoadGenerator(options).run(list(arrivals_from_lines(sys.stdin.buffer))))


if __name__ == "__main__":
    main()
