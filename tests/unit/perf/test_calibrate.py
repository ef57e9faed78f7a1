"""Calibration finds what made the steps, leaves alone what they don't tell, and refuses what they can't."""

from __future__ import annotations

from dataclasses import replace

import pytest

from duet_engine.perf.calibrate import CalibrationRow, UnidentifiedError, calibrate, relative_errors
from duet_engine.perf.efficiencies import STEP_NAMES, shipped
from duet_engine.perf.hardware import find_gpu
from duet_engine.perf.interface import Basis, StepBatch
from duet_engine.perf.models import find_shape
from duet_engine.perf.roofline import Roofline

GPU = find_gpu("h100-sxm")
START = shipped()["h100-sxm"]
TRUTH = {
    "linear_compute": 0.62,
    "linear_bandwidth": 0.71,
    "attention_compute": 0.48,
    "attention_bandwidth": 0.8,
    "overlap": 2.0,
    "sustained_slowdown": 1.3,
}
PROMPTS = [StepBatch.prefill(tokens) for tokens in (64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)]
DECODES = [
    StepBatch.decode(requests, requests * context)
    for requests in (1, 8, 32, 128, 256)
    for context in (256, 1024, 4096, 16_384)
]


def _rows(batches: list[StepBatch], truth: dict[str, float] = TRUTH) -> list[CalibrationRow]:
    shape = find_shape("Qwen/Qwen3-8B")
    actual = replace(START, efficiencies=START.efficiencies.with_values(truth))
    model = Roofline(shape, GPU, calibrated=actual)
    return [CalibrationRow(shape, 1, batch, model.step_seconds(batch)) for batch in batches]


def test_it_finds_the_efficiencies_that_made_the_steps() -> None:
    found = calibrate(_rows(PROMPTS + DECODES), GPU, START)
    assert found.after.mean < 0.005 < 0.1 < found.before.mean
    for name in STEP_NAMES[:4]:
        assert getattr(found.calibrated.efficiencies, name) == pytest.approx(TRUTH[name], rel=0.05)
    assert (found.calibrated.bases.prefill, found.calibrated.bases.decode) == (Basis.MEASURED, Basis.MEASURED)


def test_what_it_isnt_asked_for_stays() -> None:
    found = calibrate(_rows(DECODES), GPU, START, names=["linear_bandwidth", "attention_bandwidth"])
    changed = {
        name for name in STEP_NAMES if getattr(found.calibrated.efficiencies, name) != getattr(START.efficiencies, name)
    }
    assert changed == {"linear_bandwidth", "attention_bandwidth"} == set(found.fitted)
    assert found.calibrated.bases.prefill is START.bases.prefill
    assert found.after.mean < found.before.mean


def test_decode_alone_cannot_tell_the_attention_rate_of_prefill() -> None:
    with pytest.raises(UnidentifiedError, match=r"can't identify .*attention_compute") as refused:
        calibrate(_rows(DECODES), GPU, START)
    assert "attention_compute" in refused.value.names
    assert "attention_bandwidth" not in refused.value.names


def test_prefill_alone_cannot_tell_the_bandwidth_of_kv() -> None:
    with pytest.raises(UnidentifiedError) as refused:
        calibrate(_rows(PROMPTS), GPU, START)
    assert "attention_bandwidth" in refused.value.names


def test_steps_without_experts_cannot_tell_theirs() -> None:
    with pytest.raises(UnidentifiedError) as refused:
        calibrate(_rows(PROMPTS + DECODES), GPU, START, names=[*STEP_NAMES, "expert_bandwidth", "link_bandwidth"])
    assert refused.value.names == ("expert_bandwidth", "link_bandwidth")


MIXED = [StepBatch.decode(32, 32_000).with_chunks(chunk, 1024) for chunk in (64, 128, 256, 384, 512, 768, 1024, 2048)]


def test_mixed_and_prefix_steps_are_measured_once_enough_rows_show_them() -> None:
    few = calibrate(_rows(PROMPTS + DECODES + MIXED[:7]), GPU, START).calibrated.bases
    enough = calibrate(_rows(PROMPTS + DECODES + MIXED), GPU, START).calibrated.bases
    assert (few.mixed, few.prefix) == (Basis.ASSUMED, Basis.ASSUMED)
    assert (enough.mixed, enough.prefix) == (Basis.MEASURED, Basis.MEASURED)


def test_steps_that_the_model_cannot_reproduce_are_not_measured() -> None:
    mixed = [replace(row, seconds=1.6 * row.seconds) for row in _rows(MIXED)]
    bases = calibrate(_rows(PROMPTS + DECODES) + mixed, GPU, START).calibrated.bases
    assert bases.mixed is Basis.ASSUMED
    assert bases.decode is Basis.MEASURED


def test_rows_that_nothing_can_be_learnt_from_are_refused() -> None:
    with pytest.raises(ValueError, match="rows: at least one"):
        calibrate([], GPU, START)
    with pytest.raises(ValueError, match=r"rows\[0\]: needs a batch that isn't empty and a time above 0"):
        calibrate([replace(_rows(DECODES)[0], seconds=0.0)], GPU, START)
    with pytest.raises(ValueError, match="names: unknown: speed"):
        calibrate(_rows(DECODES), GPU, START, names=["speed"])


def test_errors_are_relative_to_what_was_observed() -> None:
    rows = [replace(row, seconds=row.seconds / 1.25) for row in _rows(DECODES, truth={})]
    assert relative_errors(rows, GPU, START) == pytest.approx([0.25] * len(rows))
