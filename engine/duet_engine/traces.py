"""Request traces as streams of arrivals: Azure's LLM inference CSV and Mooncake's JSON lines.

Invariant: arrivals come in order of time, the first at zero, with at least one token in and one out. A line that breaks
this is an error with file, line and reason; nothing is skipped or repaired, because a silently shortened trace would
flatter every result that comes from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import NoReturn

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
COUNT = re.compile(r" *[0-9]{1,15} *")


class TraceError(ValueError):
    """A trace that can't be replayed; the message names the file, the line and the reason."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace. Token counts are ISL and OSL; time runs from the trace's first request."""

    time_seconds: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class _Line:
    """Where a value stands, for the error message."""

    source: str
    number: int

    def fail(self, reason: str) -> NoReturn:
        raise TraceError(f"{self.source}: line {self.number}: {reason}")


def read_trace(path: Path) -> Iterator[Arrival]:
    """The arrivals of a trace file, in whichever of the two formats its first line shows.

    Raises:
        TraceError: at the first line that is wrong, or at once for a file that can't be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from parse_trace(lines, source=str(path))
    except OSError as error:
        raise TraceError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: isn't text: {error.reason} at byte {error.start}") from error


def parse_trace(lines: Iterable[str], *, source: str) -> Iterator[Arrival]:
    """The same from lines of text; `source` names them in errors."""
    numbered = enumerate(lines, start=1)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        raise TraceError(f"{source}: is empty")
    number, line = first
    if line.lstrip().startswith("{"):
        return _in_order(_mooncake(chain([first], numbered), source), source)
    columns = tuple(name.strip() for name in line.split(","))
    if columns != AZURE_COLUMNS:
        _Line(source, number).fail(
            f"expected the header {','.join(AZURE_COLUMNS)} (Azure LLM inference CSV) or a JSON object (Mooncake)"
        )
    return _in_order(_azure(numbered, source), source)


def cut(arrivals: Iterable[Arrival], *, speed: float = 1.0, limit_seconds: float = math.inf) -> Iterator[Arrival]:
    """The first `limit_seconds` of a trace (by its own clock), replayed `speed` times as fast."""
    for arrival in arrivals:
        if arrival.time_seconds >= limit_seconds:
            return
        yield Arrival(arrival.time_seconds / speed, arrival.input_tokens, arrival.output_tokens)


def _in_order(timed: Iterable[tuple[_Line, float, int, int]], source: str) -> Iterator[Arrival]:
    """Arrivals counted from the first one."""
    start = previous = None
    for line, time_seconds, input_tokens, output_tokens in timed:
        if start is None or previous is None:
            start = previous = time_seconds
        if time_seconds < previous:
            line.fail(f"goes back in time by {previous - time_seconds:.3f} s; sort the trace by time")
        previous = time_seconds
        yield Arrival(time_seconds - start, input_tokens, output_tokens)
    if start is None:
        raise TraceError(f"{source}: holds no request")


def _azure(numbered: Iterable[tuple[int, str]], source: str) -> Iterator[tuple[_Line, float, int, int]]:
    for number, text in numbered:
        line = _Line(source, number)
        if not text.strip():
            continue
        cells = text.rstrip().split(",")
        if len(cells) != len(AZURE_COLUMNS):
            line.fail(f"has {len(cells)} cells, expected {len(AZURE_COLUMNS)}: {text[:80]!r}")
        yield (
            line,
            _timestamp(line, cells[0]),
            _count(line, AZURE_COLUMNS[1], cells[1]),
            _count(line, AZURE_COLUMNS[2], cells[2]),
        )


def _mooncake(numbered: Iterable[tuple[int, str]], source: str) -> Iterator[tuple[_Line, float, int, int]]:
    for number, text in numbered:
        line = _Line(source, number)
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            line.fail(f"isn't JSON: {error}")
        if not isinstance(record, dict):
            line.fail("isn't a JSON object")
        milliseconds = _field(line, record, "timestamp")
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or not _finite(milliseconds):
            line.fail(f"timestamp must be a number of milliseconds, not {milliseconds!r}")
        yield (
            line,
            milliseconds / 1000,
            _count(line, "input_length", _field(line, record, "input_length")),
            _count(line, "output_length", _field(line, record, "output_length")),
        )


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
