"""What an engine's steps were, one line of JSON each: written by the plugin, read by whoever calibrates or compares.

Invariant: a line says all that the performance model and a simulator need to predict the step: the batch by its
moments, what the worker held when the step began, and how long it took. A reader ignores fields that it doesn't know;
a line that it can't understand is named by file and line.

    {"step_log": 1, "worker": "decode-0", "role": "decode", "model": "Qwen/Qwen3-8B", "gpu": "h100-sxm", ...}
    {"kind": "mixed", "decode_rows": 8, "decode_context_tokens": 9100, "prefill_rows": 1, "prefill_tokens": 256, ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, TypeVar

from duet_engine.perf.interface import StepBatch
from duet_engine.protocol import Role, StepKind

FORMAT = 1
LOOP_SECONDS = 0.005
"""What an engine does between two steps takes at most so long; a longer pause means that it had nothing to do."""
Line = TypeVar("Line")


class StepLogError(ValueError):
    """A line that isn't understood; the message names file, line and field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLogHead:
    """The first line of a log: whose steps follow."""

    worker: str
    role: Role
    model: str
    """A known id, or the path of a config.json."""
    gpu: str = ""
    """As `duet_engine.perf.hardware` knows it; empty where it doesn't."""
    ranks: int = 1
    kv_capacity_tokens: int = 0
    chunked_prefill_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A request that takes part in a step of this worker for the first time."""

    rid: str
    input_tokens: int = 0
    received_at_seconds: float = 0.0
    """When the worker's scheduler got it."""
    ready_at_seconds: float = 0.0
    """From when on it needed nobody else to run here: with a place for its KV elsewhere, or with its KV here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLogEntry:
    """One forward pass. Rows, tokens and queues are those when it was launched."""

    kind: StepKind
    started_at_seconds: float
    """By the engine's monotonic clock: only differences mean anything."""
    seconds: float
    """From launch to the end of its last kernel, without what the engine did between steps."""
    decode_rows: int = 0
    """Requests that get one token each."""
    decode_context_tokens: int = 0
    """Length of their contexts in all."""
    prefill_rows: int = 0
    """Prompts that have a chunk in this step."""
    prefill_tokens: int = 0
    """Tokens of these chunks in all."""
    prefill_context_tokens: int = 0
    """Tokens ahead of these chunks, computed or cached, in all."""
    prefill_pairs: int = 0
    """q·c + q(q+1)/2 for each chunk of q tokens behind c; see `pairs`."""
    kv_used_tokens: int = 0
    queues: Mapping[str, int] = field(default_factory=dict)
    """Requests by place, as `duet_engine.protocol.Work` names them; empty places may be left out."""
    joined: tuple[Joined, ...] = ()
    """Who is new in this step."""

    @property
    def batch(self) -> StepBatch:
        """The step as the performance model takes it."""
        return StepBatch(
            self.decode_rows,
            self.decode_context_tokens,
            self.prefill_rows,
            self.prefill_tokens,
            self.prefill_context_tokens,
            self.prefill_pairs,
        )


def pairs(chunk_tokens: int, context_tokens: int) -> int:
    """Pairs of tokens that attend to each other in one chunk; a step's are the sum over its chunks."""
    return chunk_tokens * context_tokens + chunk_tokens * (chunk_tokens + 1) // 2


def durations(log: Sequence[StepLogEntry], *, loop_seconds: float = LOOP_SECONDS) -> list[float]:
    """From each step's start to the next one's where the engine stayed busy, so that its own work counts too."""
    tells_joins = any(entry.joined for entry in log)
    found = []
    for entry, following in pairwise(log):
        until_next = following.started_at_seconds - entry.started_at_seconds
        busy = not idle_between(entry, following) if tells_joins else until_next < entry.seconds + loop_seconds
        found.append(until_next if busy else entry.seconds)
    return [*found, *(entry.seconds for entry in log[-1:])]


def idle_between(entry: StepLogEntry, following: StepLogEntry) -> bool:
    """Whether nobody was there to run between two steps in a row: the second one's are all new, and came later."""
    if following.decode_rows + following.prefill_rows > len(following.joined):
        return False
    if entry.queues.get("queued") or entry.queues.get("deflected"):
        return False
    ended_at = entry.started_at_seconds + entry.seconds
    return all(each.ready_at_seconds > ended_at for each in following.joined)


def head_line(head: StepLogHead) -> str:
    """The log's first line."""
    return json.dumps({"step_log": FORMAT, **asdict(head)}, separators=(",", ":")) + "\n"


def entry_line(entry: StepLogEntry) -> str:
    """One step's line; zeros are left out."""
    return json.dumps({name: value for name, value in asdict(entry).items() if value}, separators=(",", ":")) + "\n"


def read_step_log(lines: Iterable[str], *, name: str) -> tuple[StepLogHead, Iterator[StepLogEntry]]:
    """Whose steps these are, and the steps, read as they are asked for. `name` is what lines are called by.

    Raises:
        StepLogError: at once for a missing or bad first line, while reading for any other.
    """
    numbered = enumerate(lines, start=1)
    number, first = next(numbered, (1, ""))
    values = _object(first, place=f"{name}:{number}")
    if values.get("step_log") != FORMAT:
        raise StepLogError(
            f"{name}:1: step_log: must be {FORMAT} in a log's first line, got {values.get('step_log')!r}"
        )
    head = _read(StepLogHead, values | {"role": _role(values, f"{name}:1")}, place=f"{name}:1")
    return head, _entries(numbered, name)


def _entries(numbered: Iterable[tuple[int, str]], name: str) -> Iterator[StepLogEntry]:
    for number, line in numbered:
        place = f"{name}:{number}"
        values = _object(line, place=place)
        try:
            kind = StepKind(values.get("kind", ""))
        except ValueError:
            raise StepLogError(f"{place}: kind: must be one of {', '.join(StepKind)}") from None
        joined = tuple(_read(Joined, each, place=f"{place}: joined") for each in values.get("joined", ()))
        entry = _read(StepLogEntry, {"started_at_seconds": 0.0, **values, "kind": kind, "joined": joined}, place=place)
        if not entry.seconds > 0:
            raise StepLogError(f"{place}: seconds: must be above 0, got {entry.seconds}")
        yield entry


def _role(values: Mapping[str, Any], place: str) -> Role:
    try:
        return Role(values.get("role", ""))
    except ValueError:
        raise StepLogError(f"{place}: role: must be one of {', '.join(Role)}") from None


def _object(line: str, *, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise StepLogError(f"{place}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise StepLogError(f"{place}: must be an object")
    return values


def _read(kind: type[Line], values: Mapping[str, Any], *, place: str) -> Line:
    """The known fields of a line, their types checked."""
    known = {each.name: str(each.type) for each in fields(kind)}  # type: ignore[arg-type]  # dataclasses both
    for name, wanted in known.items():
        value = values.get(name)
        if wanted in ("int", "float") and name in values:
            number = isinstance(value, int | float if wanted == "float" else int) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf"):  # type: ignore[operator]  # a number by now
                raise StepLogError(f"{place}: {name}: must be a number from 0 on, got {value!r}")
    try:
        return kind(**{name: value for name, value in values.items() if name in known})
    except TypeError as error:
        raise StepLogError(f"{place}: {str(error).split('__init__() ')[-1]}") from None
