"""What users ask for, as a stream of requests: from traces, cut, sped up, copied and merged.

Invariant: requests come in order of arrival, and the same arguments give the same stream to the last bit. Streams are
lazy: a workload of a day costs no more memory than one of a minute.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from duet_engine.traces import PREFIX_BLOCK_TOKENS, Arrival, SkippedLines, read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "PREFIX_BLOCK_TOKENS",
    "Request",
    "SkippedLines",
    "copied",
    "from_arrivals",
    "from_trace",
    "limited",
    "merged",
    "mooncake_lines",
    "sped_up",
]

DEFAULT_CLASS = "default"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a client sends it; time runs from the workload's start."""

    arrival_seconds: float
    input_tokens: int
    output_tokens: int
    prefix_block_hashes: tuple[int, ...] = ()
    """Of the prompt's leading blocks of 512 tokens; requests whose first n hashes agree share n blocks of prompt."""
    class_name: str = DEFAULT_CLASS


def from_trace(
    path: Path, *, class_name: str = DEFAULT_CLASS, skipped: SkippedLines | None = None
) -> Iterator[Request]:
    """The requests of an Azure CSV or a Mooncake JSONL; bad lines are counted in `skipped`, where it is given.

    Raises:
        TraceError: naming file, line and reason.
    """
    return from_arrivals(read_trace(path, skipped=skipped), class_name=class_name)


def from_arrivals(arrivals: Iterable[Arrival], *, class_name: str = DEFAULT_CLASS) -> Iterator[Request]:
    """A trace's lines as requests of one class."""
    for arrival in arrivals:
        yield Request(
            arrival.time_seconds,
            arrival.input_tokens,
            arrival.output_tokens,
            arrival.prefix_block_hashes,
            class_name,
        )


def mooncake_lines(requests: Iterable[Request]) -> Iterator[str]:
    """The stream as a Mooncake JSONL, which `from_trace` and other tools' replays read; milliseconds, so rounded."""
    for request in requests:
        yield json.dumps(
            {
                "timestamp": round(1000 * request.arrival_seconds),
                "input_length": request.input_tokens,
                "output_length": request.output_tokens,
                "hash_ids": list(request.prefix_block_hashes),
            }
        )


def limited(requests: Iterable[Request], seconds: float) -> Iterator[Request]:
    """Those that arrive in the first `seconds`."""
    return takewhile(lambda request: request.arrival_seconds < seconds, requests)


def sped_up(requests: Iterable[Request], speed: float) -> Iterator[Request]:
    """The same requests `speed` times as fast. Cold starts don't speed up with them: for more load prefer `copied`."""
    if not 0 < speed < math.inf:
        raise ValueError(f"speed: must be above 0, got {speed}")
    for request in requests:
        yield replace(request, arrival_seconds=request.arrival_seconds / speed)


def merged(streams: Sequence[Iterable[Request]]) -> Iterator[Request]:
    """Several streams as one, in order of arrival; of equal times the earlier stream's goes first."""
    return heapq.merge(*streams, key=lambda request: request.arrival_seconds)


def copied(requests: Iterable[Request], copies: int, *, jitter_seconds: float, seed: int) -> Iterator[Request]:
    """Each request `copies` times, the first as it was, the others up to `jitter_seconds` later.

    More load at the trace's own pace. Copies have prompts of their own, so that none finds another's prefix in a cache;
    they still share lengths, so bursts are more alike than those of so many independent users.
    """
    if copies < 1 or jitter_seconds < 0:
        raise ValueError(f"copies: must be at least 1 with a jitter of 0 s or more, got {copies} and {jitter_seconds}")
    generator = np.random.default_rng([seed, copies])
    waiting: list[tuple[float, int, Request]] = []
    count = 0
    for request in requests:
        while waiting and waiting[0][0] <= request.arrival_seconds:
            yield heapq.heappop(waiting)[2]
        delays = generator.random(copies - 1) * jitter_seconds
        for copy, delay in enumerate((0.0, *delays.tolist())):
            moment = request.arrival_seconds + delay
            own = replace(request, arrival_seconds=moment, prefix_block_hashes=_own_hashes(request, copy, copies))
            heapq.heappush(waiting, (moment, count, own))
            count += 1
    while waiting:
        yield heapq.heappop(waiting)[2]


def _own_hashes(request: Request, copy: int, copies: int) -> tuple[int, ...]:
    return tuple(block * copies + copy for block in request.prefix_block_hashes)
