"""What a batch of SGLang's is, as a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from duet_engine.plugin.steps import Step, StepTimer
from duet_engine.protocol import StepKind


class Mode(SimpleNamespace):
    """SGLang's forward mode."""

    def __getattr__(self, name: str) -> Any:
        kind = self.__dict__["kind"]
        means = {"is_decode": "decode", "is_mixed": "mixed", "is_split_prefill": "split", "is_prebuilt": "prebuilt"}
        return lambda: kind in ("extend", "mixed", "split") if name == "is_extend" else means.get(name) == kind


def step_of(batch: SimpleNamespace) -> Step | None:
    return StepTimer(synchronous=True).begin(batch)


def batch(kind: str, number: int = 1, **fields: Any) -> SimpleNamespace:
    defaults: dict[str, Any] = {"chunked_req": None, "decoding_reqs": None}
    defaults |= {"reqs": [], "seq_lens_cpu": None, "extend_lens": None, "prefix_lens": None}
    return SimpleNamespace(forward_mode=Mode(kind=kind), forward_iter=number, **defaults | fields)


def test_a_decode_step_has_a_row_and_a_token_for_each_request() -> None:
    step = step_of(batch("decode", reqs=[1, 2, 3], seq_lens_cpu=np.array([10, 20, 30])))
    assert step is not None
    assert (step.kind, step.decode_rows, step.decode_context_tokens, step.output_tokens) == (StepKind.DECODE, 3, 60, 3)


def test_a_mixed_steps_residents_are_told_from_its_chunks() -> None:
    """SGLang appends them as prompts of one token, each behind its context."""
    mixed = batch(
        "mixed", reqs=[1, 2, 3], extend_lens=[256, 1, 1], prefix_lens=[512, 99, 199],
        decoding_reqs=[2, 3], chunked_req=1,
    )  # fmt: skip
    step = step_of(mixed)
    assert step is not None
    assert (step.kind, step.decode_rows, step.decode_context_tokens) == (StepKind.MIXED, 2, 300)
    assert (step.chunk_tokens, step.chunk_context_tokens) == ((256,), (512,))
    assert step.prefill_pairs == 256 * 512 + 256 * 257 / 2
    assert step.output_tokens == 2, "the prompt goes on"


def test_contexts_grow_by_a_token_each_step_and_are_counted_anew_when_somebody_leaves_or_joins() -> None:
    timer, requests = StepTimer(synchronous=True), [1, 2, 3]

    def context(reqs: list[int], lengths: list[int]) -> int:
        step = timer.begin(batch("decode", reqs=reqs, seq_lens_cpu=np.array(lengths)))
        assert step is not None
        return step.decode_context_tokens

    assert [context(requests, [10, 20, 30]), context(requests, [11, 21, 31])] == [60, 63]
    requests.append(4)
    assert context(requests, [12, 22, 32, 7]) == 73
    assert context([1, 2, 4, 5], [13, 23, 8, 100]) == 144


def test_kv_that_comes_from_elsewhere_is_no_step() -> None:
    assert step_of(batch("prebuilt", reqs=[1])) is None
    assert step_of(batch("idle")) is None


def test_times_of_overlapping_steps_add_up_to_the_time_that_passed() -> None:
    timer = StepTimer(synchronous=False)
    steps = []
    first, second = (batch("decode", number, reqs=[1], seq_lens_cpu=np.array([5])) for number in (1, 2))
    for launched in (first, second):
        begun = timer.begin(launched)
        assert begun is not None
        timer.launched(launched)
        steps.append(begun)
    assert timer.under_way
    for ended in (first, second):
        timer.end(ended)
    assert not timer.under_way
    assert abs(sum(step.seconds for step in steps) - (steps[1].ended_at - steps[0].started_at)) < 1e-9


def test_requests_of_a_prompts_step_are_outside_the_running_batch() -> None:
    running = batch("decode", reqs=[1, 2])
    timer = StepTimer(synchronous=True)
    assert timer.rows_outside(running) == 0
    prompts = batch("extend", reqs=[3, 4, 5], extend_lens=[9, 9, 9], prefix_lens=[0, 0, 0])
    timer.begin(prompts)
    assert timer.rows_outside(running) == 3
    timer.launched(prompts)
    timer.end(prompts)
    assert timer.rows_outside(running) == 0
