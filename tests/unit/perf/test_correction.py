"""The online correction: slow, bounded, and open about its drift."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.perf.correction import BOUND, CorrectedSteps, Correction
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline
from duet_engine.protocol import StepKind

seconds = st.floats(1e-4, 100.0)


def _after(ratio: float, steps: int) -> Correction:
    correction = Correction()
    for _ in range(steps):
        correction = correction.observed(StepKind.DECODE, predicted_seconds=0.01, observed_seconds=0.01 * ratio)
    return correction


@given(predicted=seconds, observed=seconds)
def test_one_step_hardly_moves_it(predicted: float, observed: float) -> None:
    moved = Correction().observed(StepKind.MIXED, predicted_seconds=predicted, observed_seconds=observed)
    assert 0.997 < moved.factor(StepKind.MIXED) < 1.003


def test_a_lasting_error_is_learnt_for_its_kind_of_step_alone() -> None:
    correction = _after(1.1, 2000)
    assert correction.factor(StepKind.DECODE) == pytest.approx(1.1, rel=1e-3)
    assert correction.factor(StepKind.PREFILL) == 1.0
    assert correction.drifted == {}


def test_drift_is_visible_and_bounded() -> None:
    correction = _after(4.0, 5000)
    assert correction.drifted == {StepKind.DECODE: BOUND}
    assert _after(0.1, 5000).drifted == {StepKind.DECODE: 1 / BOUND}


@given(ratios=st.lists(st.floats(0.01, 100.0), max_size=300))
def test_it_never_leaves_its_bounds(ratios: list[float]) -> None:
    correction = Correction()
    for ratio in ratios:
        correction = correction.observed(StepKind.PREFILL, predicted_seconds=1.0, observed_seconds=ratio)
    assert 1 / BOUND <= correction.factor(StepKind.PREFILL) <= BOUND


def test_a_step_without_time_says_nothing() -> None:
    assert Correction().observed(StepKind.DECODE, predicted_seconds=0.01, observed_seconds=0.0) == Correction()


def test_it_scales_the_model_it_corrects() -> None:
    model = Roofline(find_shape("Qwen/Qwen3-8B"), find_gpu("h100-sxm"))
    corrected = CorrectedSteps(model, _after(1.1, 2000))
    decode, prefill = StepBatch.decode(8, 8000), StepBatch.prefill(512)
    assert corrected.step_seconds(decode) == pytest.approx(1.1 * model.step_seconds(decode), rel=1e-3)
    assert corrected.step(prefill) == model.step(prefill)
