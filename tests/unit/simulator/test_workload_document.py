"""Workloads as people write them: each form becomes the workload it says, and mistakes are named by their field."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from duet_engine.simulator.workload import Request, SkippedLines
from duet_engine.simulator.workload_document import LengthsDocument, Workload, WorkloadDocument, problems

PLAIN = {"requestsPerSecond": 5, "inputTokens": 1000, "outputTokens": {"mean": 100, "distribution": "exponential"}}
TRACE_LINES = (
    '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [7, 8]}',
    '{"timestamp": 30000, "input_length": 9, "output_length": 0}',
    '{"timestamp": 60000, "input_length": 30, "output_length": 1}',
    '{"timestamp": 90000, "input_length": 40, "output_length": 1}',
)


def workload(document: dict[str, Any], *, base: Path = Path(), seed: int = 1) -> Workload:
    return WorkloadDocument.model_validate(document).workload(base=base, seed=seed)


def requests(document: dict[str, Any], *, base: Path = Path()) -> list[Request]:
    return list(workload(document, base=base).requests())


def test_made_up_traffic_lasts_ten_minutes_unless_told_otherwise() -> None:
    made = workload({"traffic": PLAIN})
    found = list(made.requests())
    assert made.seconds == 600
    assert 540 < found[-1].arrival_seconds < 600
    assert len(found) == pytest.approx(3000, rel=0.1)
    assert found == list(made.requests())


def test_speed_copies_and_minutes_apply_to_any_workload() -> None:
    found = requests({"traffic": PLAIN, "minutes": 4, "speed": 2, "copies": 3, "jitterSeconds": 10})
    assert len(found) == pytest.approx(3 * 1200, rel=0.1)
    assert found[-1].arrival_seconds <= 125


def test_a_trace_is_found_beside_its_file_cut_and_its_bad_lines_counted(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text("\n".join(TRACE_LINES))
    made = workload({"trace": "trace.jsonl", "minutes": 1.2, "skipBadLines": True}, base=tmp_path)
    skipped = SkippedLines()
    assert list(made.requests(skipped=skipped)) == [Request(0.0, 700, 5, (7, 8)), Request(60.0, 30, 1)]
    assert (made.name, skipped.count) == ("trace.jsonl", 1)


@pytest.mark.parametrize("course", [{"bursts": {"factor": 4, "everySeconds": 120, "lastingSeconds": 20}}, {"day": {}}])
def test_bursts_and_days_are_courses_of_the_rate(course: dict[str, Any]) -> None:
    found = requests({"traffic": PLAIN | course, "minutes": 20})
    counts, _ = np.histogram([each.arrival_seconds for each in found], 60)
    assert counts.max() > (60 * 5 * 20 / 60 if "bursts" in course else 0)
    assert len(found) == pytest.approx(20 * 60 * (5 + 5 * 3 / 6) if "bursts" in course else 20 * 60 * 1.52, rel=0.1)


def test_a_ramp_lasts_to_its_end() -> None:
    ramp = {"ramp": [[0, 0], [5, 10]], "inputTokens": 10, "outputTokens": 10}
    made = workload({"traffic": ramp})
    assert made.seconds == 300
    assert len(list(made.requests())) == pytest.approx(1500, rel=0.1)


def test_classes_are_mixed_and_clients_have_prefixes_of_their_own() -> None:
    chat = PLAIN | {"name": "chat", "clients": 8, "sharedPrefix": {"tokens": 1024}}
    found = requests({"classes": [chat, PLAIN | {"name": "code"}]})
    assert {each.class_name for each in found} == {"chat", "code"}
    assert len({each.prefix_block_hashes for each in found if each.class_name == "chat"}) > 3
    assert all(len(each.prefix_block_hashes) == (2 if each.class_name == "chat" else 0) for each in found)


@pytest.mark.parametrize(
    ("lengths", "mean", "p95"),
    [
        ({"mean": 1000, "p95": 3000}, 1000, 3000),
        ({"p50": 1000, "p95": 4000}, 1426, 4000),
        ({"quantiles": [[0, 10], [0.95, 100], [1, 1000]]}, 56, 100),
    ],
)
def test_lengths_have_the_percentiles_asked_for(lengths: dict[str, Any], mean: float, p95: float) -> None:
    drawn = LengthsDocument.model_validate(lengths).lengths().draw(200_000, np.random.default_rng(1))
    assert np.mean(drawn) == pytest.approx(mean, rel=0.03)
    assert np.percentile(drawn, 95) == pytest.approx(p95, rel=0.03)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({}, "document: give exactly one of trace, traffic and classes"),
        ({"trace": "a.csv", "traffic": PLAIN}, "document: give exactly one of trace, traffic and classes"),
        ({"trace": "a.csv", "speeed": 2}, "speeed: isn't a field; look for a typing error"),
        ({"traffic": {"requestsPerSecond": 1, "outputTokens": 5}}, "traffic.inputTokens: is required"),
        ({"traffic": PLAIN | {"ramp": [[0, 1], [1, 1]]}}, "traffic: give requestsPerSecond or ramp"),
        ({"traffic": PLAIN | {"inputTokens": {"p50": 5}}}, "traffic.inputTokens: p50 needs a p95"),
        ({"traffic": PLAIN | {"inputTokens": {"mean": 5, "p95": 500}}}, "traffic.inputTokens: p95 must be from 1 to"),
        ({"traffic": PLAIN | {"sharedPrefix": {"tokens": 700}}}, "traffic.sharedPrefix.tokens: Input should be a mul"),
        (
            {"classes": [{"ramp": [[1, 1], [2, 2]], "inputTokens": 1, "outputTokens": 1}]},
            "classes[0]: points: times must rise from 0",
        ),
    ],
)
def test_mistakes_are_named_by_their_field(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WorkloadDocument.model_validate(document)
    assert any(found.startswith(problem) for found in problems(caught.value)), problems(caught.value)
