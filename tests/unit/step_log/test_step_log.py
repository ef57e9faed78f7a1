"""A step log comes back as it was written, and a bad line is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.perf.interface import StepBatch
from duet_engine.protocol import Role, StepKind
from duet_engine.step_log import (
    Joined,
    StepLogEntry,
    StepLogError,
    StepLogHead,
    entry_line,
    head_line,
    pairs,
    read_step_log,
)

HEAD = StepLogHead(worker="d-0", role=Role.DECODE, model="Qwen/Qwen3-8B", gpu="h100-sxm", kv_capacity_tokens=1000)
counts = st.integers(0, 10**6)
entries = st.lists(
    st.builds(
        StepLogEntry,
        kind=st.sampled_from(StepKind),
        started_at_seconds=st.floats(0, 1e9),
        seconds=st.floats(1e-6, 10),
        decode_rows=counts,
        decode_context_tokens=counts,
        prefill_rows=counts,
        prefill_tokens=counts,
        prefill_context_tokens=counts,
        prefill_pairs=counts,
        kv_used_tokens=counts,
        queues=st.dictionaries(st.sampled_from(["running", "queued"]), counts),
        joined=st.lists(st.builds(Joined, rid=st.text(min_size=1), input_tokens=counts), max_size=2).map(tuple),
    )
)


@given(entries)
def test_a_log_is_read_as_it_was_written(steps: list[StepLogEntry]) -> None:
    head, read = read_step_log([head_line(HEAD), *map(entry_line, steps)], name="log")
    assert head == HEAD
    assert list(read) == steps


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 50_000)), min_size=1, max_size=4), counts, counts)
def test_a_step_s_batch_is_the_performance_model_s(chunks: list[tuple[int, int]], rows: int, context: int) -> None:
    batch = StepBatch.decode(rows, context)
    for tokens, ahead in chunks:
        batch = batch.with_chunks(tokens, ahead)
    entry = StepLogEntry(
        kind=StepKind.MIXED,
        started_at_seconds=0.0,
        seconds=1.0,
        decode_rows=rows,
        decode_context_tokens=context,
        prefill_rows=len(chunks),
        prefill_tokens=sum(tokens for tokens, _ in chunks),
        prefill_context_tokens=sum(ahead for _, ahead in chunks),
        prefill_pairs=sum(pairs(tokens, ahead) for tokens, ahead in chunks),
    )
    assert entry.batch == pytest.approx(batch)


def test_fields_of_the_future_are_ignored() -> None:
    line = '{"kind":"decode","started_at_seconds":1,"seconds":0.01,"decode_rows":2,"temperature":60}\n'
    _, (entry,) = read_step_log([head_line(HEAD).replace("{", '{"clock":"tsc",', 1), line], name="log")
    assert (entry.decode_rows, entry.queues) == (2, {})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "log:1: not JSON"),
        (['{"kind": "decode"}'], "log:1: step_log: must be 1 in a log's first line"),
        (
            ['{"step_log": 1, "worker": "d", "role": "boss", "model": "m"}'],
            "log:1: role: must be one of prefill, decode",
        ),
        (['{"step_log": 1, "worker": "d", "role": "decode"}'], "log:1: missing 1 required .*'model'"),
        ([head_line(HEAD), "[]"], "log:2: must be an object"),
        ([head_line(HEAD), '{"kind": "nap", "seconds": 1}'], "log:2: kind: must be one of idle, prefill"),
        ([head_line(HEAD), '{"kind": "decode", "seconds": 0}'], "log:2: seconds: must be above 0"),
        ([head_line(HEAD), '{"kind": "decode"}'], "log:2: missing 1 required .*'seconds'"),
        ([head_line(HEAD), '{"kind": "decode", "seconds": 1, "decode_rows": 1.5}'], "log:2: decode_rows: must be a"),
        ([head_line(HEAD), '{"kind": "decode", "seconds": "1"}'], "log:2: seconds: must be a number"),
    ],
)
def test_a_bad_line_is_named(lines: list[str], message: str) -> None:
    with pytest.raises(StepLogError, match=message):
        list(read_step_log(lines, name="log")[1])
