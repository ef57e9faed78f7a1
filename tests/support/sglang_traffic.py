"""Rough traffic for a prefill and a decode worker: answers are checked, some callers leave, some requests are aborted.

Invariant: each request ends in exactly one way, and one that got no end in time says so.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.support.sglang_servers import SglangServer

HANG_SECONDS = 90.0


class End(StrEnum):
    """How a request ended."""

    ANSWERED = "answered as by an ordinary server"
    WRONG = "answered otherwise"
    REFUSED = "refused with a reason"
    FAILED = "failed with an error that says why"
    ABORTED = "aborted by its caller"
    LEFT = "left by its caller"
    SILENT = "without an end"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request and its right answer."""

    ids: list[int]
    tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came: a status, the text so far, and whether it was complete."""

    status: int
    text: str = ""
    finish: str = ""
    error: str = ""


@dataclass(slots=True)
class Traffic:
    """Callers of one pair. `prefill` may be put in place anew while they run."""

    prefill: SglangServer
    decode: SglangServer
    prompts: Sequence[Prompt]
    phase: str = "whole"
    """What is wrong with the pair now; a request belongs to the worst phase that it sees."""
    ends: Counter[tuple[str, str, End]] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, callers: int, *, seed: int) -> Iterator[None]:
        """So many callers at once, each with the next request as soon as the last has ended."""
        with ThreadPoolExecutor(callers) as pool:
            loops = [pool.submit(self._call_on_and_on, random.Random(seed + place)) for place in range(callers)]
            try:
                yield
            finally:
                self.stop.set()
                for loop in loops:
                    loop.result()

    def _call_on_and_on(self, chance: random.Random) -> None:
        while not self.stop.is_set():
            prompt = chance.choice(self.prompts)
            way = chance.choice(("pair", "deflected"))
            before = self.phase
            end, detail = self.call(prompt, way, chance)
            phase = max(before, self.phase, key=PHASES.index)
            self.ends[phase, way, end] += 1
            if end in (End.WRONG, End.SILENT) or (end is End.FAILED and len(self.examples) < 40):
                self.examples.append(f"{phase}, {way}, {end}: {detail}")
            if end in (End.FAILED, End.REFUSED):
                time.sleep(0.2)

    def call(self, prompt: Prompt, way: str, chance: random.Random) -> tuple[End, str]:
        """One request; one in ten callers leaves, one in ten aborts, one in twenty of the deflected gets no chunk."""
        rid, fate, streamed = uuid.uuid4().hex, chance.random(), chance.random() < 0.5
        body: dict[str, Any] = {
            "rid": rid,
            "input_ids": prompt.ids,
            "sampling_params": {"max_new_tokens": prompt.tokens, "temperature": 0, "ignore_eos": True},
            "stream": streamed,
        }
        patience = chance.uniform(0, 0.5) if fate < 0.1 else None
        if 0.1 <= fate < 0.2:
            threading.Timer(chance.uniform(0, 0.5), self._abort, (rid,)).start()
        if way == "pair":
            reply = self._through_pair(body, patience)
        else:
            budget = {"chunk_budget_tokens": 0} if fate > 0.95 else {}
            body["duet"] = {"gateway": "soak", "sequence": 1, "deflected": True, **budget}
            reply = exchange(self.decode, body, patience)
        return self._end(reply, prompt, aborted=0.1 <= fate < 0.2), f"{reply.status} {reply.finish} {reply.error}"

    def _through_pair(self, body: dict[str, Any], patience: float | None) -> Reply:
        """As a gateway does it: where one half fails the other is aborted."""
        prefill, pair = self.prefill, self.prefill.pair_fields(random.getrandbits(60))
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(exchange, prefill, {**body, "stream": False, **pair}, patience)
            first.add_done_callback(
                lambda done: self._abort(body["rid"]) if done.result().status not in (200, LEFT) else None
            )
            reply = exchange(self.decode, {**body, **pair}, patience)
            if reply.status != 200:
                self._abort(body["rid"])
            first_reply = first.result()
        first_is_why = first_reply.status not in (200, LEFT) and reply.status != SILENT and reply.finish != "refused"
        return first_reply if first_is_why else reply

    def _abort(self, rid: str) -> None:
        for server in (self.prefill, self.decode):
            with suppress(OSError, http.client.HTTPException):
                call(server, "/abort_request", {"rid": rid}).close()

    @staticmethod
    def _end(reply: Reply, prompt: Prompt, *, aborted: bool) -> End:
        if reply.status == LEFT:
            return End.LEFT
        if reply.status == SILENT:
            return End.SILENT
        if reply.finish == "abort" or (aborted and reply.status != 200):
            return End.ABORTED if aborted else End.FAILED
        if reply.status == 200:
            return End.ANSWERED if reply.text == prompt.text else End.WRONG
        return End.REFUSED if reply.finish == "refused" else End.FAILED if reply.error else End.SILENT


PHASES = ("whole", "without a prefill worker")
LEFT, SILENT, GONE = -1, -2, -3
"""In a status's place: the caller left, nothing came, nobody was there."""


def call(server: SglangServer, path: str, body: dict[str, Any], *, seconds: float = HANG_SECONDS) -> Any:
    """An open connection with the request on its way; its answer is at `.response`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=seconds)
    connection.request("POST", path, json.dumps(body).encode(), {"content-type": "application/json"})
    return connection


def exchange(server: SglangServer, body: dict[str, Any], patience: float | None) -> Reply:
    """A whole request; whoever has no more patience hangs up without a word."""
    try:
        with closing(call(server, "/generate", body, seconds=HANG_SECONDS if patience is None else patience)) as line:
            answer = line.getresponse()
            if answer.status != 200:
                content = answer.read().decode(errors="replace")
                refused = "refused" if answer.headers.get("x-duet-refused") else ""
                return Reply(answer.status, finish=refused, error=content[:300])
            last = _last_event(answer) if body["stream"] else json.loads(answer.read())
            if "error" in last:
                return Reply(500, error=str(last["error"])[:300])
            reason = last["meta_info"]["finish_reason"] or {}
            return Reply(200, last["text"], str(reason.get("type", "")), str(reason.get("message", "")))
    except TimeoutError:
        return Reply(SILENT if patience is None else LEFT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(GONE, error=f"{type(error).__name__}: {error}")


def _last_event(answer: Any) -> dict[str, Any]:
    last: dict[str, Any] = {"error": "the stream ended without an event"}
    deadline = time.monotonic() + HANG_SECONDS
    for line in answer:
        if time.monotonic() > deadline:
            raise TimeoutError
        if line.startswith(b"data: {"):
            last = json.loads(line[6:])
    return last


def resident_bytes(server: SglangServer) -> int:
    """Memory of the server's processes' own: they are one session."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, StopIteration):
            if os.getsid(int(process.name)) == server.process.pid:
                lines = (process / "status").read_text().splitlines()
                total += 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])
    return total
