"""Who is deflected, and where to: tables for each rule, properties for the choice."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.routing import decode, prompt

from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.deflect import (
    MOST_SCHEDULES,
    DeflectionMode,
    DeflectionRule,
    LocalPath,
    best_local_path,
    candidates_for,
    deflects,
    has_room,
    local_pace,
    printed_rule,
)
from duet_engine.policy.estimates import PRINTED_TERMS
from duet_engine.policy.fleet import DecodeWorker, Prompt

RULE = DeflectionRule(itl_seconds=0.05)
PROMPT = prompt(2000, ttft_objective_seconds=0.8)
decode_worker = partial(decode, chunk_tokens=8192, batch=DecodeBatch(8, 8000), kv_free_tokens=80_000, prefills=True)


def local_path(prompt: Prompt, worker: DecodeWorker, rule: DeflectionRule) -> LocalPath | None:
    """The path through this one worker."""
    pace = local_pace(worker, rule)
    return best_local_path(prompt, [(worker, pace)], rule) if pace else None


@pytest.mark.parametrize(
    ("waited", "prefill_path", "local", "expected"),
    [
        (0.0, None, 9.0, True),
        (0.0, 0.39, 0.1, False),
        (0.0, 0.41, 0.1, True),
        (0.0, 0.41, 0.5, False),
        (0.3, 0.15, 0.1, True),
        (0.0, 5.0, 4.0, True),
        (0.0, 5.0, 6.0, False),
    ],
    ids=["no prefill worker", "not in danger", "in danger", "but later", "waited long", "both late", "local later"],
)
def test_lazy(waited: float, prefill_path: float | None, local: float, expected: bool) -> None:
    late = replace(PROMPT, waited_seconds=waited)
    assert deflects(late, RULE, prefill_ttft_seconds=prefill_path, local_ttft_seconds=local) is expected


@pytest.mark.parametrize(
    ("prefill_path", "local", "expected"),
    [(0.1, 0.12, True), (0.1, 0.14, False), (0.9, 0.79, True), (0.9, 0.81, False), (None, 5.0, True)],
)
def test_the_papers_rule(prefill_path: float | None, local: float, expected: bool) -> None:
    rule = replace(RULE, mode=DeflectionMode.PAPER)
    assert deflects(PROMPT, rule, prefill_ttft_seconds=prefill_path, local_ttft_seconds=local) is expected


def test_the_paper_deflects_one_prompt_a_worker() -> None:
    busy = decode_worker(local_prefill_tokens=100)
    assert local_path(PROMPT, busy, RULE) is not None
    assert local_path(PROMPT, busy, replace(RULE, mode=DeflectionMode.PAPER)) is None


def test_off_means_off_but_for_unified_workers() -> None:
    off = replace(RULE, mode=DeflectionMode.OFF)
    assert local_path(PROMPT, decode_worker(), off) is None
    assert local_path(PROMPT, decode_worker(unified=True), off) is not None


@pytest.mark.parametrize(
    "changes",
    [{"prefills": False}, {"free_slots": 0}, {"kv_free_tokens": 1999}, {"batch": DecodeBatch(400, 90_000)}],
    ids=["deflection inactive", "batch full", "KV full", "no safe chunk"],
)
def test_a_worker_that_cannot_take_it(changes: dict[str, Any]) -> None:
    assert local_path(PROMPT, decode_worker(**changes), RULE) is None


def test_an_excluded_worker_is_not_asked_again() -> None:
    prompt = replace(PROMPT, excluded=frozenset({"d"}))
    assert local_path(prompt, decode_worker(), RULE) is None


def test_work_ahead_counts() -> None:
    idle, busy = (
        local_path(PROMPT, decode_worker(), RULE),
        local_path(PROMPT, decode_worker(local_prefill_tokens=4000), RULE),
    )
    assert idle is not None and busy is not None
    assert busy.ttft_seconds == pytest.approx(idle.ttft_seconds + busy.ahead_seconds)
    assert busy.ahead_seconds > idle.ttft_seconds


def test_a_prompt_larger_than_the_cache_is_left_to_the_engine() -> None:
    worker = decode_worker(kv_capacity_tokens=1000, kv_free_tokens=0)
    assert has_room(PROMPT, worker)
    assert not has_room(replace(PROMPT, tokens=500), worker)


def test_an_engine_with_a_small_buffer_gets_chunks_that_fit() -> None:
    assert candidates_for(decode_worker(chunk_tokens=600), RULE) == (512, 256, 128)
    assert candidates_for(decode_worker(chunk_tokens=64), RULE) == (64,)


workers = st.lists(
    st.builds(
        decode_worker,
        key=st.uuids().map(str),
        batch=st.builds(DecodeBatch, requests=st.integers(0, 300), context_tokens=st.integers(0, 400_000)),
        kv_free_tokens=st.integers(0, 100_000),
        free_slots=st.integers(0, 5),
        local_prefill_tokens=st.integers(0, 20_000),
        prefills=st.booleans(),
    ),
    max_size=MOST_SCHEDULES,
)


@settings(deadline=None)
@given(workers, st.integers(1, 30_000))
def test_the_best_path_is_the_soonest_of_those_that_can(fleet: list[DecodeWorker], tokens: int) -> None:
    prompt = replace(PROMPT, tokens=tokens)
    open_workers = [(worker, pace) for worker in fleet if (pace := local_pace(worker, RULE)) is not None]
    best = best_local_path(prompt, open_workers, RULE)
    paths = [path for worker in fleet if (path := local_path(prompt, worker, RULE)) is not None]
    if best is None:
        assert paths == []
        return
    assert best.ttft_seconds == min(path.ttft_seconds for path in paths)
    assert best.worker.prefills and best.worker.free_slots > 0
    assert best.worker.kv_free_tokens >= tokens
    assert sum(best.schedule.chunks_tokens) == tokens


def test_a_cached_prefix_is_neither_computed_nor_given_room() -> None:
    warm = replace(PROMPT, tokens=500, cached_tokens=1500)
    cold, short = local_path(PROMPT, decode_worker(), RULE), local_path(warm, decode_worker(), RULE)
    assert cold is not None and short is not None
    assert sum(short.schedule.chunks_tokens) == 500
    assert short.ttft_seconds < cold.ttft_seconds
    assert local_path(warm, decode_worker(kv_free_tokens=500), RULE) is not None


def test_the_way_to_the_client_counts_against_the_budget() -> None:
    assert replace(RULE, engine_gap_seconds=0.01).step_budget_seconds == pytest.approx(RULE.step_budget_seconds - 0.01)


def test_kairos_as_printed() -> None:
    rule = printed_rule(0.05)
    assert (rule.alpha, rule.step_budget_seconds, rule.terms) == (1.3, 0.05, PRINTED_TERMS)
    assert local_path(PROMPT, decode_worker(local_prefill_tokens=1), rule) is None
