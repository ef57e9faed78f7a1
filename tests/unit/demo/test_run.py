"""Verdicts of a run: each criterion fails for its own reason; a clock that can't be trusted overrides them all."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from duet_dev.demo.observations import Lease, PoolCounts, Sample, ScaleAction
from duet_dev.demo.records import Pulse, Record
from duet_dev.demo.report import document, print_report, write_json
from duet_dev.demo.results import Results, UnloadedTtft
from duet_dev.demo.run import ExitStatus, Run
from duet_dev.demo.timeline import draw_timeline
from duet_engine.perf import catalog
from duet_engine.protocol import Role
from duet_engine.slo import Objective

START = 1_700_000_000.0
OBJECTIVE = Objective(ttft_seconds=1.0, itl_seconds=0.05)
IDLE = UnloadedTtft(catalog.profile("a100-3g.40gb", "Qwen/Qwen3-8B", role=Role.PREFILL))


def record(index: int, *, ttft_seconds: float = 0.5, failure: str | None = None) -> Record:
    return Record(
        index=index,
        endpoint="/v1/completions",
        streamed=True,
        sent_at_seconds=START + index,
        duration_seconds=1.0,
        input_tokens=100,
        output_tokens=11,
        ttft_seconds=ttft_seconds,
        gaps_milliseconds=(40.0,) * 10,
        failure=failure,
    )


def pulse(lag_seconds: float = 0.002) -> Pulse:
    return Pulse(time_seconds=START, sent=0, in_flight=0, loop_lag_p99_seconds=lag_seconds)


def results(*records: Record, lag_seconds: float = 0.002) -> Results:
    found = Results(OBJECTIVE, IDLE)
    for line in (*records, pulse(lag_seconds)):
        found.add(line)
    return found


def samples(prefill: list[int], decode: list[int]) -> list[Sample]:
    return [
        Sample(
            time_seconds=START + 100 * index / len(prefill),
            prefill=PoolCounts(ready=one, desired=one),
            decode=PoolCounts(ready=other, desired=other),
        )
        for index, (one, other) in enumerate(zip(prefill, decode, strict=True))
    ]


def lease(start: float, end: float | None = None) -> Lease:
    return Lease(pod="pod", role="decode", gpus=1, start_seconds=START + start, end_seconds=end and START + end)


GOOD = Run(
    results=results(*(record(index) for index in range(100))),
    samples=samples([1, 3, 1], [1, 2, 1]),
    actions=[ScaleAction(time_seconds=START + 20, pool="prefill", from_replicas=1, to_replicas=3, message="burst")],
    leases=[lease(-5), lease(0), lease(20, 60)],
    attainment_goal=0.95,
    bundled=True,
    planned_requests=100,
    gateway_lag_seconds=0.001,
)
SLOW = results(*(record(index, ttft_seconds=2.0 if index < 10 else 0.5) for index in range(100)))
BROKEN = results(*(record(index, failure="HTTP 502" if index == 5 else None) for index in range(100)))


def failed_names(run: Run) -> list[str]:
    return [criterion.name for criterion in run.criteria() if not criterion.passed]


def test_a_good_run_passes() -> None:
    assert failed_names(GOOD) == []
    assert GOOD.exit_status() is ExitStatus.PASSED


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (replace(GOOD, results=BROKEN), "no request failed"),
        (replace(GOOD, planned_requests=101), "no request failed"),
        (replace(GOOD, results=SLOW), "attainment"),
        (replace(GOOD, samples=samples([1, 3, 3], [1, 2, 2])), "both pools or their split rose and fell"),
        (replace(GOOD, leases=[lease(0), lease(0), lease(20, 90)]), "GPU-hours"),
    ],
)
def test_each_criterion_of_the_sample_fails_by_itself(run: Run, name: str) -> None:
    assert failed_names(run) == [name]
    assert run.exit_status() is ExitStatus.FAILED


def test_the_split_alone_may_rise_and_fall() -> None:
    assert failed_names(replace(GOOD, samples=samples([1, 3, 1], [2, 2, 2]))) == []


def test_a_trace_needs_no_failure_and_a_scale_down_only() -> None:
    down = ScaleAction(time_seconds=START + 60, pool="prefill", from_replicas=3, to_replicas=2, message="lull")
    shrunk = samples([3, 3, 2], [1, 1, 1])
    trace = replace(GOOD, bundled=False, results=SLOW, leases=[lease(0)], samples=shrunk, actions=[down])
    assert failed_names(trace) == ["attainment", "GPU-hours"]
    assert trace.exit_status() is ExitStatus.PASSED
    assert replace(trace, results=BROKEN).exit_status() is ExitStatus.FAILED
    assert replace(trace, samples=samples([1, 2, 3], [1, 1, 1])).exit_status() is ExitStatus.FAILED
    assert replace(trace, actions=[]).exit_status() is ExitStatus.FAILED, "a worker was lost, and nobody decided it"


@pytest.mark.parametrize(
    "run",
    [
        replace(GOOD, results=results(*(record(index) for index in range(100)), lag_seconds=0.021)),
        replace(GOOD, gateway_lag_seconds=0.021),
        replace(GOOD, gateway_lag_seconds=0.021, results=BROKEN),
    ],
)
def test_a_lagging_loop_makes_the_run_invalid_whatever_else_it_was(run: Run) -> None:
    assert run.exit_status() is ExitStatus.INVALID


def test_only_the_loads_own_window_is_billed() -> None:
    assert GOOD.duration_seconds == 100
    assert GOOD.gpu_hours == pytest.approx((100 + 100 + 40) / 3600)
    assert GOOD.peak_gpus == 3
    assert GOOD.gpu_hours_ratio == pytest.approx(240 / 300)


def test_long_prompts_are_judged_by_their_unloaded_time() -> None:
    strict = Results(Objective(ttft_seconds=0.1, itl_seconds=0.05), IDLE)
    fair = Results(Objective(ttft_seconds=0.1, itl_seconds=0.05, ttft_unloaded_ratio=2.0), IDLE)
    long = record(0, ttft_seconds=1.5 * IDLE.seconds(4000)).model_copy(update={"input_tokens": 4000})
    for found in (strict, fair):
        found.add(long)
    assert not strict.verdicts[0].met
    assert fair.verdicts[0].met


@pytest.mark.parametrize(("duration_seconds", "met"), [(1.49, True), (1.52, False)])
def test_an_answer_in_one_piece_is_judged_by_its_whole_time(duration_seconds: float, met: bool) -> None:
    found = Results(OBJECTIVE, IDLE)
    whole = {"streamed": False, "ttft_seconds": None, "gaps_milliseconds": (), "duration_seconds": duration_seconds}
    found.add(record(0).model_copy(update=whole))
    assert found.verdicts[0].met is met


def test_the_report_shows_every_criterion_and_the_failures() -> None:
    shown = io.StringIO()
    print_report(Console(file=shown, width=200), replace(GOOD, results=BROKEN))
    text = shown.getvalue()
    assert "1 of 100 requests failed" in text
    assert "request 5 (/v1/completions): HTTP 502" in text
    assert "FAILED" in text
    for criterion in GOOD.criteria():
        assert criterion.name in text


def test_report_and_picture_are_written(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", document(GOOD, settings={"trace": "none"}, stages_seconds={"load": 100.0}))
    draw_timeline(GOOD, tmp_path / "timeline.png", title="test")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "passed"
    assert report["figures"]["requests"] == 100
    assert report["gpu_hours_ratio"] == pytest.approx(0.8)
    assert len(report["timeline"]["samples"]) == 3
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
