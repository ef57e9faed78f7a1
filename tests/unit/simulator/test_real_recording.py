"""What the real SGLang did comes out of the simulator by itself: a short recording of two workers on the CPU.

`tests/bench/bench_step_replay.py` makes such recordings and evaluates longer ones.
"""

from dataclasses import replace
from pathlib import Path

from tests.support import step_comparison

from duet_engine.protocol import StepKind
from duet_engine.simulator.replay import replay

RECORDED = step_comparison.read(Path(__file__).parent / "recorded")


def test_every_step_of_the_real_engines_is_reproduced() -> None:
    found = replay(step_comparison.recording(RECORDED), step_comparison.scenario(RECORDED))

    kinds = {step.kind for log in RECORDED.logs.values() for step in log.steps}
    assert kinds == {StepKind.PREFILL, StepKind.DECODE, StepKind.MIXED}
    for name, agreement in found.items():
        assert agreement.same_batch == agreement.logged == agreement.simulated > 20, name
    decode = found["decode-0000"]
    assert decode.same_queues == decode.same_kv == decode.logged


def test_engines_with_smaller_chunks_would_have_done_otherwise() -> None:
    """The control: what is reproduced depends on how workers schedule."""
    scenario = step_comparison.scenario(RECORDED)
    assert scenario.prefill is not None
    limits = replace(scenario.prefill.limits, chunked_prefill_tokens=256)
    smaller = replace(scenario, prefill=replace(scenario.prefill, limits=limits))

    assert replay(step_comparison.recording(RECORDED), smaller)["prefill-0000"].share < 0.9
