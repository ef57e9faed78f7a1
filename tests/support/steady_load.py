"""Requests at a rate that a test changes as it goes, with the fate of each.

Invariant: bounded in rate by the test, in time by the block that it's used in; on leaving the block every request has
ended. What a request asks for and what counts as its failure is the demo's own client's business.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from types import TracebackType
from typing import Self

import aiohttp
from tests.support.waiting import until

from duet_dev.demo.client import send
from duet_dev.demo.load import ask_for
from duet_dev.demo.records import Record
from duet_engine.traces import Arrival

REQUEST_TIMEOUT_SECONDS = 120.0
PAUSED_LOOK_SECONDS = 0.05
MOST_IN_FLIGHT = 500

Lengths = tuple[int, int]
"""Prompt and output tokens of one request."""


@dataclass
class SteadyLoad:
    """Sends `lengths` in turn: evenly spaced at the present rate, and at once what `send` is asked for."""

    url: str
    model: str
    lengths: Sequence[Lengths]
    requests_per_second: float = 0.0
    records: list[Record] = field(default_factory=list)
    _in_flight: set[asyncio.Task[None]] = field(default_factory=set)
    _indices: Iterator[int] = field(default_factory=count)
    _sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self.url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
            headers={"Content-Type": "application/json"},
        )
        self._sending = asyncio.create_task(self._send_steadily())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._sending is not None
        self._sending.cancel()
        ended = await asyncio.gather(self._sending, return_exceptions=True)
        if kind is not None:
            for request in self._in_flight:
                request.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=kind is not None)
        await self._session.close()
        assert isinstance(ended[0], asyncio.CancelledError), ended[0]

    @property
    def in_flight(self) -> int:
        """Requests that have been sent and haven't ended."""
        return len(self._in_flight)

    @property
    def failures(self) -> list[str]:
        """Why each request that failed did; another number of tokens than asked for is a failure too."""
        return [f"request {record.index}: {record.failure}" for record in self.records if record.failure]

    async def ended(self, requests: int, *, seconds: float) -> None:
        """Until so many more requests than now have ended."""
        wanted = len(self.records) + requests

        async def enough() -> bool:
            return len(self.records) >= wanted

        await until(f"{requests} requests have ended", enough, seconds=seconds)

    def send(self, requests: int) -> None:
        """So many at once, whatever the rate."""
        for index in islice(self._indices, requests):
            assert len(self._in_flight) < MOST_IN_FLIGHT, "requests pile up without end"
            request = asyncio.create_task(self._send(index, *self.lengths[index % len(self.lengths)]))
            self._in_flight.add(request)
            request.add_done_callback(self._in_flight.discard)

    async def _send_steadily(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            rate = self.requests_per_second
            if rate == 0:
                await asyncio.sleep(PAUSED_LOOK_SECONDS)
                due = loop.time()
            elif due > loop.time():
                await asyncio.sleep(min(due - loop.time(), PAUSED_LOOK_SECONDS))
            else:
                due += 1 / rate
                self.send(1)

    async def _send(self, index: int, input_tokens: int, output_tokens: int) -> None:
        arrival = Arrival(time_seconds=0.0, input_tokens=input_tokens, output_tokens=output_tokens)
        self.records.append(await send(self._session, ask_for(index, arrival, self.model)))
