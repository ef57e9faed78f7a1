"""Trace readers: what they read is what was written, and what they refuse they name."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.traces import Arrival, TraceError, cut, parse_trace, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
TRACES = Path(__file__).parents[4] / "shared" / "traces"

Gap = tuple[int, int, int]
tokens = st.integers(min_value=1, max_value=200_000)
gaps_milliseconds = st.integers(min_value=0, max_value=60_000)
requests = st.lists(st.tuples(gaps_milliseconds, tokens, tokens), min_size=1, max_size=30)


def arrivals_of(gaps: list[Gap]) -> list[Arrival]:
    elapsed, found = 0, []
    for index, (gap, input_tokens, output_tokens) in enumerate(gaps):
        elapsed += gap if index else 0
        found.append(Arrival(elapsed / 1000, input_tokens, output_tokens))
    return found


def azure_lines(arrivals: list[Arrival]) -> list[str]:
    start = datetime(2023, 11, 16, 18, 17, 3, 979960, tzinfo=UTC)
    moments = [start + timedelta(milliseconds=round(arrival.time_seconds * 1000)) for arrival in arrivals]
    rows = [
        f"{moment:%Y-%m-%d %H:%M:%S.%f}0,{arrival.input_tokens},{arrival.output_tokens}\r\n"
        for moment, arrival in zip(moments, arrivals, strict=True)
    ]
    return [HEADER + "\r\n", *rows]


def mooncake_lines(arrivals: list[Arrival]) -> list[str]:
    return [
        json.dumps(
            {
                "timestamp": round(arrival.time_seconds * 1000) + 27_000,
                "input_length": arrival.input_tokens,
                "output_length": arrival.output_tokens,
                "hash_ids": [0, 1],
            }
        )
        + "\n"
        for arrival in arrivals
    ]


@given(requests)
@pytest.mark.parametrize("written", [azure_lines, mooncake_lines])
def test_reads_back_what_was_written(written: Callable[[list[Arrival]], list[str]], gaps: list[Gap]) -> None:
    expected = arrivals_of(gaps)
    found = list(parse_trace(written(expected), source="trace"))
    assert [(a.input_tokens, a.output_tokens) for a in found] == [(a.input_tokens, a.output_tokens) for a in expected]
    for one, other in zip(found, expected, strict=True):
        assert math.isclose(one.time_seconds, other.time_seconds, abs_tol=1e-6)


@given(st.lists(st.text(max_size=60), max_size=5), st.sampled_from([[], [HEADER], ['{"timestamp": 0}']]))
def test_any_text_is_read_or_refused_with_a_line(noise: list[str], start: list[str]) -> None:
    try:
        found = list(parse_trace([*start, *noise], source="trace"))
    except TraceError as error:
        assert str(error).startswith("trace: ")
    else:
        assert found


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "trace: is empty"),
        ([HEADER], "trace: holds no request"),
        (["time,in,out"], "line 1: expected the header"),
        ([HEADER, "2023-11-16 18:17:03.97,10"], "line 2: has 2 cells, expected 3"),
        ([HEADER, "yesterday,10,10"], "line 2: TIMESTAMP must look like"),
        ([HEADER, "2023-11-16 18:17:03.97,0,10"], "line 2: ContextTokens must be a whole number of at least 1"),
        ([HEADER, "2023-11-16 18:17:03.97,10,1.5"], "line 2: GeneratedTokens must be a whole number"),
        (
            [HEADER, "2023-11-16 18:17:03,1,1", "", "2023-11-16 18:17:01.5,1,1"],
            "line 4: goes back in time by 1.500 s; sort",
        ),
        (['{"timestamp": 0}'], "line 1: has no field 'input_length'"),
        (['{"timestamp": "0", "input_length": 1, "output_length": 1}'], "line 1: timestamp must be a number"),
        (['{"timestamp": NaN, "input_length": 1, "output_length": 1}'], "line 1: timestamp must be a number"),
        (['{"timestamp": 0, "input_length": true, "output_length": 1}'], "line 1: input_length must be a whole"),
        (['{"timestamp": 0, "input_length": 1, "output_length": 1}', "{"], "line 2: isn't JSON"),
        (['{"timestamp": 0, "input_length": 1, "output_length": 1}', "[1]"], "line 2: isn't a JSON object"),
    ],
)
def test_a_bad_line_is_named(lines: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message.replace("'", ".")):
        list(parse_trace(lines, source="trace"))


def test_good_lines_before_a_bad_one_are_streamed() -> None:
    lines = parse_trace([HEADER, "2023-11-16 18:17:03.97,7,9", "bad"], source="trace")
    assert next(lines) == Arrival(0.0, 7, 9)
    with pytest.raises(TraceError, match="line 3"):
        next(lines)


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gone\.csv: can't be read: No such file"):
        list(read_trace(tmp_path / "gone.csv"))


def test_a_binary_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(TraceError, match=r"picture\.png: isn't text"):
        list(read_trace(picture))


def test_a_time_zone_is_understood() -> None:
    lines = [HEADER, "2024-05-10 00:00:00.009930+00:00,10,20", "2024-05-10 02:00:01.009930+02:00,11,21"]
    assert [arrival.time_seconds for arrival in parse_trace(lines, source="trace")] == [0.0, 1.0]


@given(requests, st.floats(min_value=0.1, max_value=50), st.floats(min_value=0.001, max_value=3000))
def test_cut_limits_by_the_traces_clock_and_scales_time(gaps: list[Gap], speed: float, limit_seconds: float) -> None:
    arrivals = arrivals_of(gaps)
    found = list(cut(arrivals, speed=speed, limit_seconds=limit_seconds))
    kept = [arrival for arrival in arrivals if arrival.time_seconds < limit_seconds]
    assert [arrival.time_seconds for arrival in found] == [arrival.time_seconds / speed for arrival in kept]


@pytest.mark.parametrize(
    ("name", "requests", "minutes", "mean_input", "mean_output"),
    [
        ("azure/AzureLLMInferenceTrace_code.csv", 8819, 57, 2048, 28),
        ("azure/AzureLLMInferenceTrace_conv.csv", 19366, 58, 1155, 211),
        ("mooncake/conversation_trace.jsonl", 12031, 59, 12035, 343),
    ],
)
def test_real_traces_have_their_published_shape(
    name: str, requests: int, minutes: int, mean_input: int, mean_output: int
) -> None:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"THE REAL TRACES ARE NOT HERE: {path} is absent, its reader is tested on written lines only")
    arrivals = list(read_trace(path))
    assert len(arrivals) == requests
    assert round(arrivals[-1].time_seconds // 60) in (minutes, minutes - 1)
    assert round(sum(a.input_tokens for a in arrivals) / requests) == mean_input
    assert round(sum(a.output_tokens for a in arrivals) / requests) == mean_output
