"""Request traces as streams of arrivals: Azure's LLM inference CSV and Mooncake's JSON lines.

Invariant: arrivals come in order of time, the first at zero, with at least one token in and one out. A line that breaks
this is an error with file, line and reason. Nothing is repaired, and lines are skipped only for a caller that counts
them, because a silently shortened trace would flatter every result that comes from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import NoReturn

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
COUNT = re.compile(r" *[0-9]{1,15} *")
PREFIX_BLOCK_TOKENS = 512
"""Mooncake's traces give one hash to each block of so many prompt tokens, the last one partly filled."""
SHOWN_REASONS = 5


class TraceError(ValueError):
    """A trace that can't be replayed; the message names the file, the line and the reason."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace. Token counts are ISL and OSL; time runs from the trace's first request."""

    time_seconds: float
    input_tokens: int
    output_tokens: int
    prefix_block_hashes: tuple[int, ...] = ()
    """Blocks of 512 prompt tokens; equal hashes up to a block mean equal prompts up to it. Empty: nothing is known."""


@dataclass(slots=True)
class SkippedLines:
    """Lines that were left out because the caller asked for it: how many, and the reasons of the first few."""

    count: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, error: TraceError) -> None:
        self.count += 1
        if self.count <= SHOWN_REASONS:
            self.reasons.append(str(error))


@dataclass(frozen=True, slots=True)
class _Line:
    """Where a value stands, for the error message."""

    source: str
    number: int

    def fail(self, reason: str) -> NoReturn:
        raise TraceError(f"{self.source}: line {self.number}: {reason}")


def read_trace(path: Path, *, skipped: SkippedLines | None = None) -> Iterator[Arrival]:
    """The arrivals of a trace file, in whichever of the two formats its first line shows.

    Bad lines are counted in `skipped` and left out, where it is given.

    Raises:
        TraceError: at the first line that is wrong, or at once for a file that can't be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from parse_trace(lines, source=str(path), skipped=skipped)
    except OSError as error:
        raise TraceError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: isn't text: {error.reason} at byte {error.start}") from error


def parse_trace(lines: Iterable[str], *, source: str, skipped: SkippedLines | None = None) -> Iterator[Arrival]:
    """The same from lines of text; `source` names them in errors."""
    numbered = enumerate(lines, start=1)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        raise TraceError(f"{source}: is empty")
    number, line = first
    if line.lstrip().startswith("{"):
        return _in_order(chain([first], numbered), _mooncake, source, skipped)
    columns = tuple(name.strip() for name in line.split(","))
    if columns != AZURE_COLUMNS:
        _Line(source, number).fail(
            f"expected the header {','.join(AZURE_COLUMNS)} (Azure LLM inference CSV) or a JSON object (Mooncake)"
        )
    return _in_order(numbered, _azure, source, skipped)


def cut(arrivals: Iterable[Arrival], *, speed: float = 1.0, limit_seconds: float = math.inf) -> Iterator[Arrival]:
    """The first `limit_seconds` of a trace (by its own clock), replayed `speed` times as fast."""
    for arrival in arrivals:
        if arrival.time_seconds >= limit_seconds:
            return
        yield replace(arrival, time_seconds=arrival.time_seconds / speed)


def _in_order(
    numbered: Iterable[tuple[int, str]],
    parse: Callable[[_Line, str], Arrival],
    source: str,
    skipped: SkippedLines | None,
) -> Iterator[Arrival]:
    """Arrivals counted from the first one."""
    start = previous = None
    for number, text in numbered:
        if not text.strip():
            continue
        line = _Line(source, number)
        try:
            arrival = parse(line, text)
            if previous is not None and arrival.time_seconds < previous:
                line.fail(f"goes back in time by {previous - arrival.time_seconds:.3f} s; sort the trace by time")
        except TraceError as error:
            if skipped is None:
                raise
            skipped.add(error)
            continue
        previous = arrival.time_seconds
        start = previous if start is None else start
        yield replace(arrival, time_seconds=previous - start)
    if start is None:
        raise TraceError(f"{source}: holds no request")


def _azure(line: _Line, text: str) -> Arrival:
    cells = text.rstrip().split(",")
    if len(cells) != len(AZURE_COLUMNS):
        line.fail(f"has {len(cells)} cells, expected {len(AZURE_COLUMNS)}: {text[:80]!r}")
    return Arrival(
        _timestamp(line, cells[0]),
        _count(line, AZURE_COLUMNS[1], cells[1]),
        _count(line, AZURE_COLUMNS[2], cells[2]),
    )


def _mooncake(line: _Line, text: str) -> Arrival:
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line.fail(f"isn't JSON: {error}")
    if not isinstance(record, dict):
        line.fail("isn't a JSON object")
    milliseconds = _field(line, record, "timestamp")
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or not _finite(milliseconds):
        line.fail(f"timestamp must be a number of milliseconds, not {milliseconds!r}")
    return Arrival(
        milliseconds / 1000,
        _count(line, "input_length", _field(line, record, "input_length")),
        _count(line, "output_length", _field(line, record, "output_length")),
        _hashes(line, record.get("hash_ids", [])),
    )


def _hashes(line: _Line, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        line.fail(f"hash_ids must be a list of whole numbers, not {str(value)[:80]}")
    return tuple(value)


def _field(line: _Line, record: dict[str, object], name: str) -> object:
    if name not in record:
        line.fail(f"has no field {name!r}")
    return record[name]


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _count(line: _Line, name: str, value: object) -> int:
    """A positive whole number, from JSON or from a cell."""
    if isinstance(value, str) and COUNT.fullmatch(value):
        value = int(value)
    if type(value) is not int or value < 1:
        line.fail(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _timestamp(line: _Line, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        line.fail(f"TIMESTAMP must look like 2023-11-16 18:17:03.9799600, not {text!r}")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
