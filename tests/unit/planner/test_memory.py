"""What the planner remembers, and how it's written down."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.planning import demand

from duet_operator.planner.memory import (
    MOST_NEEDS,
    MOST_SAMPLES,
    from_document,
    largest_need,
    recent_needs,
    to_document,
    with_demand,
    with_need,
)
from duet_operator.planner.types import Counts, DemandSample, Need, PlannerMemory

NOW = 1_000_000.0
untimed = settings(deadline=None, max_examples=60)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


def test_samples_are_bounded_in_number_and_age() -> None:
    memory = PlannerMemory()
    for second in range(0, 5000, 1):
        memory = with_demand(memory, demand(1.0), now_seconds=NOW + second)
    assert len(memory.samples) == MOST_SAMPLES
    later = with_demand(memory, demand(1.0), now_seconds=NOW + 20_000)
    assert len(later.samples) == 1


def test_saturated_output_does_not_hide_what_is_asked_for() -> None:
    asked = demand(10.0, output_tokens=200.0, output_tokens_per_second=500.0)
    memory = with_demand(PlannerMemory(), asked, now_seconds=NOW)
    assert memory.samples[-1].output_tokens_per_second == 2000.0


def test_cached_tokens_are_no_work() -> None:
    memory = with_demand(PlannerMemory(), demand(1.0, cached_tokens_per_second=400.0), now_seconds=NOW)
    assert memory.samples[-1].uncached_input_tokens_per_second == 600.0


@given(
    st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=50),
    st.floats(0, 100),
)
def test_largest_need_of_the_window_is_exact(passes: list[tuple[float, int, int]], window: float) -> None:
    """Dropping needs that later ones cover loses nothing."""
    memory, now, every = PlannerMemory(), NOW, []
    for pause, prefill, decode in passes:
        now += pause
        every.append(Need(now, prefill, decode))
        memory = with_need(memory, Counts(prefill, decode), now_seconds=now, window_seconds=window)
    lasting = [need for need in every if now - window < need.time_seconds or need is every[-1]]
    assert largest_need(memory.needs) == largest_need(lasting)


def test_needs_are_bounded_and_never_understated() -> None:
    """Needs that keep falling can't be dropped; the oldest are joined instead."""
    memory = PlannerMemory()
    for second in range(1000):
        need = Counts(2000 - second, 1000 - second)
        memory = with_need(memory, need, now_seconds=NOW + second, window_seconds=3600.0)
    assert len(memory.needs) <= MOST_NEEDS
    assert largest_need(memory.needs) == Counts(2000, 1000)


def test_needs_end_with_the_window() -> None:
    memory = with_need(PlannerMemory(), Counts(5, 5), now_seconds=NOW, window_seconds=60.0)
    assert recent_needs(memory, now_seconds=NOW + 59, window_seconds=60.0)
    assert not recent_needs(memory, now_seconds=NOW + 61, window_seconds=60.0)


# --- as a document ---


@untimed
@given(
    st.lists(st.tuples(*[st.floats(0, 1e7)] * 5), max_size=20),
    st.lists(st.tuples(st.floats(0, 1e7), st.integers(0, 999), st.integers(0, 999)), max_size=20),
    st.floats(0.8, 2.0),
)
def test_document_brings_the_memory_back(
    samples: list[tuple[Any, ...]], needs: list[tuple[Any, ...]], correction: float
) -> None:
    memory = PlannerMemory(
        samples=tuple(DemandSample(*each) for each in sorted(samples)),
        needs=tuple(Need(*each) for each in sorted(needs)),
        correction=correction,
    )
    first = json.loads(json.dumps(to_document(memory)))
    read, problem = from_document(first)
    assert problem is None
    assert len(read.samples) == len(memory.samples)
    assert largest_need(read.needs) == largest_need(memory.needs)
    assert to_document(read) == first


def test_full_memory_stays_far_under_200_kb() -> None:
    memory = PlannerMemory()
    for second in range(3000):
        now = 1_763_700_000.123 + second
        memory = with_demand(memory, demand(1234.5678, input_tokens=34_567.8), now_seconds=now)
        memory = with_need(memory, Counts(9999 - second, 0), now_seconds=now, window_seconds=3600.0)
    assert len(json.dumps(to_document(memory))) < 100_000


@untimed
@given(JSON)
def test_any_document_is_read_or_forgotten_with_a_reason(document: Any) -> None:
    memory, problem = from_document(document)
    assert problem is not None or isinstance(document, dict)
    assert 0.8 <= memory.correction <= 2.0


@untimed
@given(JSON, JSON, JSON)
def test_any_content_is_read_or_forgotten_with_a_reason(samples: Any, needs: Any, correction: Any) -> None:
    memory, _ = from_document({"samples": samples, "needs": needs, "correction": correction, "future": 1})
    assert from_document(to_document(memory))[1] is None


@pytest.mark.parametrize(
    ("document", "told"),
    [
        pytest.param("text", "expected an object, found str", id="not an object"),
        pytest.param({"samples": [[1, 2]]}, "samples aren't rows of 5 numbers", id="short rows"),
        pytest.param({"samples": [[1, 2, 3, 4, -5]]}, "samples aren't rows of 5 numbers", id="negative"),
        pytest.param({"needs": {"a": 1}}, "needs aren't rows of 3 numbers", id="not a list"),
        pytest.param({"correction": float("nan")}, "correction isn't a number", id="not a number"),
    ],
)
def test_what_was_forgotten_is_told(document: Any, told: str) -> None:
    memory, problem = from_document(document)
    assert problem is not None
    assert told in problem
    assert memory == PlannerMemory()


def test_one_bad_part_leaves_the_others() -> None:
    memory, problem = from_document({"samples": "?", "needs": [[NOW, 2, 3]], "correction": 1.5})
    assert problem is not None
    assert memory == PlannerMemory(needs=(Need(NOW, 2, 3),), correction=1.5)


def test_rows_of_a_newer_operator_are_read() -> None:
    memory, problem = from_document({"needs": [[NOW, 2, 3, "more"]]})
    assert problem is None
    assert memory.needs == (Need(NOW, 2, 3),)
