"""Equality at length on real servers (`make engine-full`): whoever prefills, the answer is an ordinary server's.

200 random prompts of 1 to 2,000 tokens for each of two models, every other one sampled by a seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.bench_rows import Row, row
from tests.support.sglang_changes import with_changes
from tests.support.sglang_servers import (
    LLAMA,
    QWEN3,
    SglangServer,
    Wanted,
    generate,
    get,
    post,
    running_servers,
    stop_server,
    through_pair,
)

pytestmark = [pytest.mark.engine, pytest.mark.engine_full, pytest.mark.slow, pytest.mark.timeout(1200)]
PROMPTS, LONGEST, TOKENS, AT_ONCE, CONTROLS = 200, 2000, 8, 8, 24
SEED = 20_511
ROOM = ("--max-total-tokens", "65536")
SCHEDULES: tuple[list[int], ...] = ([], [512, 256, 256], [128] * 12, [64, 512], [1000])

Answer = list[int]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    place: int
    ids: list[int]
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> dict[str, Any]:
        return {"tokens": TOKENS, "sampling": dict(self.sampling)}

    @property
    def deflection(self) -> dict[str, Any]:
        schedule = SCHEDULES[self.place % len(SCHEDULES)]
        return {"gateway": "g", "sequence": self.place, "deflected": True, "chunk_schedule_tokens": schedule}


def requests(*, seed: int) -> list[Asked]:
    """Greedy ones and seeded ones in turn."""
    chance = random.Random(seed)
    prompts = [[chance.randrange(3, 512) for _ in range(chance.randint(1, LONGEST))] for _ in range(PROMPTS)]
    by_seed = [{}, {"temperature": 0.9, "top_k": 40}]
    return [
        Asked(place, ids, {**by_seed[1], "sampling_seed": place} if place % 2 else {})
        for place, ids in enumerate(prompts)
    ]


@dataclass(slots=True)
class Fleet:
    """An ordinary server, a prefill and a decode worker of one model, and what the ordinary one answers."""

    model: str
    servers: dict[str, SglangServer]
    asked: list[Asked]
    expected: list[Answer]

    @property
    def decode(self) -> SglangServer:
        return self.servers["decode"]

    def plain(self, asked: Asked) -> Answer:
        return list(generate(self.servers["plain"], asked.ids, **asked.wanted)["output_ids"])

    def paired(self, asked: Asked, *, prefilled: list[int] | None = None) -> Answer:
        """By a transfer, of this prompt's KV or (the control) of another one's."""
        pair = self.servers["prefill"], self.servers["decode"]
        return through_pair(*pair, asked.ids, prefilled=prefilled, **asked.wanted)

    def deflected(self, asked: Asked) -> Answer:
        return list(generate(self.decode, asked.ids, duet=asked.deflection, **asked.wanted)["output_ids"])

    def all(self, answer: Callable[[Asked], Answer]) -> list[Answer]:
        """Several at once; what earlier ones left in the cache is gone."""
        post(self.decode, "/flush_cache")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(answer, self.asked))

    def steps(self, kind: str) -> float:
        series = rf'^duet_engine_steps_total{{kind="{kind}",rank="0"}} (\S+)$'
        found = re.search(series, get(self.decode, "/metrics")[1].decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def equal(self, got: list[Answer]) -> int:
        return sum(mine == theirs for mine, theirs in zip(got, self.expected, strict=True))


@pytest.fixture(scope="module", params=[LLAMA, QWEN3])
def fleet(request: pytest.FixtureRequest, engine_logs: Path) -> Iterator[Fleet]:
    model: str = request.param
    logs = engine_logs / model
    logs.mkdir()
    seeds = with_changes(logs / "seeds", "seeds_on_a_cpu()") | {"DUET_DEFLECTED_REQUESTS_LIMIT": "64"}
    wanted = {
        name: Wanted(role, options=ROOM, model=model, environment=seeds)
        for name, role in (("plain", "unified"), ("prefill", "prefill"), ("decode", "decode"))
    }
    with running_servers(logs, wanted) as servers:
        found = Fleet(model, servers, requests(seed=SEED), [])
        found.expected = found.all(found.plain)
        yield found


def tell(figures: list[Row], fleet: Fleet, arrangement: str, got: list[Answer]) -> None:
    name = f"{fleet.model}: answers equal, {arrangement}"
    figures.append(row(name, fleet.equal(got), "answers", "asked", PROMPTS))
    differing = [place for place, answer in enumerate(got) if answer != fleet.expected[place]]
    assert differing == []


def test_what_is_asked_tells_answers_apart(fleet: Fleet) -> None:
    """Else equality would say nothing: answers are many, and another seed gives another one."""
    assert len({tuple(answer) for answer in fleet.expected}) > PROMPTS * 0.9
    seeded = [asked for asked in fleet.asked if asked.sampling][:CONTROLS]
    others = [Asked(each.place, each.ids, {**each.sampling, "sampling_seed": 10_000 + each.place}) for each in seeded]
    same = [each.place for each in others if fleet.plain(each) == fleet.expected[each.place]]
    assert len(same) < CONTROLS / 3
    assert [fleet.plain(each) for each in seeded] == [fleet.expected[each.place] for each in seeded]


def test_a_prefill_and_a_decode_worker_answer_as_one_server(fleet: Fleet, figures: list[Row]) -> None:
    tell(figures, fleet, "prefill and decode workers", fleet.all(fleet.paired))


def test_deflected_prompts_are_answered_as_by_an_ordinary_server(fleet: Fleet, figures: list[Row]) -> None:
    before = fleet.steps("mixed")
    tell(figures, fleet, "deflected", fleet.all(fleet.deflected))
    assert fleet.steps("mixed") > before, "no chunk ran beside a resident"


def test_half_of_each_at_once_are_answered_as_by_an_ordinary_server(fleet: Fleet, figures: list[Row]) -> None:
    def either(asked: Asked) -> Answer:
        return fleet.deflected(asked) if asked.place // 2 % 2 else fleet.paired(asked)

    tell(figures, fleet, "half deflected, half transferred", fleet.all(either))


def test_deflected_prompts_whose_beginning_is_cached_are_answered_as_without(fleet: Fleet, figures: list[Row]) -> None:
    reused: list[int] = []

    def second_turn(asked: Asked) -> Answer:
        first = asked.ids[: len(asked.ids) * 2 // 3]
        if first:
            generate(fleet.decode, first, tokens=1, duet=asked.deflection)
        answer = generate(fleet.decode, asked.ids, duet=asked.deflection, **asked.wanted)
        reused.append(answer["meta_info"]["cached_tokens"])
        return list(answer["output_ids"])

    tell(figures, fleet, "deflected, two thirds cached", fleet.all(second_turn))
    share = sum(reused) / sum(len(asked.ids) for asked in fleet.asked)
    assert share > 0.6, f"only {share:.0%} of the tokens came from the cache"


def test_with_other_prompts_kv_the_answers_are_others(fleet: Fleet, figures: list[Row]) -> None:
    """The control: if equality came of itself, these would be equal too."""
    post(fleet.decode, "/flush_cache")
    chance = random.Random(5)
    controls = [asked for asked in fleet.asked if len(asked.ids) > 20][:CONTROLS]
    got = [fleet.paired(asked, prefilled=[chance.randrange(3, 512) for _ in asked.ids])[1:] for asked in controls]
    equal = sum(mine == fleet.expected[asked.place][1:] for mine, asked in zip(got, controls, strict=True))
    figures.append(row(f"{fleet.model}: answers equal, with another prompt's KV", equal, "answers", "asked", CONTROLS))
    assert equal == 0


def test_without_any_prefill_worker_a_decode_worker_serves_everything(fleet: Fleet, figures: list[Row]) -> None:
    """The last test of a fleet: its prefill worker is killed."""
    stop_server(fleet.servers["prefill"])
    tell(figures, fleet, "deflected, no prefill worker", fleet.all(fleet.deflected))
