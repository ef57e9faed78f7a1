"""GPUs, slices and curves, and the memory that goes with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.perf import memory
from duet_engine.perf.efficiencies import (
    Calibrated,
    efficiencies_for,
    from_document,
    shipped,
    to_document,
)
from duet_engine.perf.hardware import UnknownGpuError, find_gpu, gpus
from duet_engine.perf.interface import Basis
from duet_engine.perf.models import find_shape
from duet_engine.perf.sm_curves import CurveName, SmCurve


@pytest.mark.parametrize("name", sorted(gpus()))
def test_a_slice_is_never_more_than_its_gpu(name: str) -> None:
    part = gpus()[name]
    whole = next(gpu for gpu in gpus().values() if gpu.architecture == part.architecture and not gpu.mig)
    assert part.sms <= whole.sms
    assert part.flops_per_second <= whole.flops_per_second
    assert part.sliced == part.mig


def test_names_are_found_as_people_write_them() -> None:
    assert find_gpu("H100_SXM") is find_gpu("h100") is find_gpu("h100-sxm")
    with pytest.raises(UnknownGpuError, match=r"unknown GPU 'v100'; known are .*h100-sxm"):
        find_gpu("v100")


def test_an_mps_share_is_whole_tpcs() -> None:
    assert find_gpu("h100-sxm").with_mps(33).sms % 2 == 0
    assert find_gpu("h100-sxm").with_mps(1).sms == 2
    with pytest.raises(ValueError, match="mps percent: must be from 1 to 100, got 0"):
        find_gpu("h100-sxm").with_mps(0)


@pytest.mark.parametrize("name", list(CurveName))
@pytest.mark.parametrize("gpu", sorted(gpus()))
def test_curves_rise_to_the_whole_gpu_and_are_assumed(name: CurveName, gpu: str) -> None:
    curve = SmCurve.assumed(find_gpu(gpu), name)
    shares = [percent / 100 for percent in range(1, 101)]
    for values in zip(*map(curve.at, shares), strict=True):
        assert list(values) == sorted(values)
        assert values[-1] == 1.0
    assert curve.basis is Basis.ASSUMED


def test_a_measured_curve_says_so_and_meets_its_points() -> None:
    curve = SmCurve.measured([(0.25, 0.24, 0.6), (0.5, 0.5, 0.9)])
    assert curve.basis is Basis.MEASURED
    assert curve.at(0.5) == (0.5, 0.9)
    assert curve.at(0.375) == pytest.approx((0.37, 0.75))


def test_a_curve_that_falls_is_refused() -> None:
    with pytest.raises(ValueError, match="bandwidth_shares: must rise from 0 to 1"):
        SmCurve.measured([(0.25, 0.2, 0.9), (0.5, 0.5, 0.6)])


@given(first=st.integers(0, 10**6), second=st.integers(0, 10**6), ranks=st.sampled_from([1, 2, 4, 8]))
def test_kv_is_additive(first: int, second: int, ranks: int) -> None:
    shape = find_shape("Qwen/Qwen3-32B")
    apart = memory.kv_bytes(shape, first, ranks=ranks) + memory.kv_bytes(shape, second, ranks=ranks)
    assert apart == memory.kv_bytes(shape, first + second, ranks=ranks)


def test_capacity_is_what_the_weights_leave() -> None:
    shape, gpu = find_shape("meta-llama/Llama-3.1-8B"), find_gpu("h100-sxm")
    capacity = memory.kv_capacity_tokens(shape, gpu)
    used = shape.weight_bytes + memory.kv_bytes(shape, capacity)
    assert 0 <= gpu.memory_bytes * memory.MEMORY_SHARE - used < shape.kv_bytes_per_token()
    assert memory.kv_capacity_tokens(find_shape("meta-llama/Llama-3.1-70B"), gpu) == 0
    assert memory.kv_capacity_tokens(find_shape("meta-llama/Llama-3.1-70B"), gpu, ranks=4) > 0


def test_transfer_takes_its_bytes_over_the_adapters_of_all_ranks() -> None:
    shape, gpu = find_shape("meta-llama/Llama-3.1-70B"), find_gpu("h100-sxm")
    one = memory.transfer_seconds(shape, gpu, 8000) - memory.TRANSFER_BASE_SECONDS
    four = memory.transfer_seconds(shape, gpu, 8000, ranks=4) - memory.TRANSFER_BASE_SECONDS
    assert one == pytest.approx(8000 * 327_680 / 50e9)
    assert four == pytest.approx(one / 4)


@pytest.mark.parametrize("name", ["a100-sxm", "h100-sxm", "h200-sxm"])
def test_shipped_sets_are_kernel_composed_and_slices_take_them(name: str) -> None:
    calibrated = efficiencies_for(find_gpu(name))
    assert calibrated == shipped()[name]
    assert (calibrated.bases.prefill, calibrated.bases.decode) == (Basis.KERNEL_COMPOSED, Basis.KERNEL_COMPOSED)
    assert (calibrated.bases.mixed, calibrated.bases.prefix) == (Basis.ASSUMED, Basis.ASSUMED)
    family = name.removesuffix("-sxm")
    assert all(efficiencies_for(gpu) == calibrated for gpu in gpus().values() if gpu.name.startswith(f"{family}-"))


@pytest.mark.parametrize(
    ("name", "relatives"),
    [("l40s", "a100-sxm"), ("b200-sxm", "h100-sxm, h200-sxm"), ("mi300x", "a100-sxm, h100-sxm, h200-sxm")],
)
def test_a_gpu_without_a_set_takes_its_relatives_and_says_so(name: str, relatives: str) -> None:
    calibrated = efficiencies_for(find_gpu(name))
    assert calibrated.bases.decode is Basis.DATA_SHEET
    assert calibrated.source == f"data sheet, with the efficiencies of {relatives}"


def test_a_set_survives_its_file() -> None:
    calibrated: Calibrated = shipped()["h100-sxm"]
    assert from_document(to_document(calibrated)) == calibrated


def test_a_broken_set_is_refused_with_its_field() -> None:
    document = to_document(shipped()["h100-sxm"])
    values = document["efficiencies"]
    assert isinstance(values, dict)
    with pytest.raises(ValueError, match=r"efficiencies\.overlap: must be a positive number, got -1"):
        from_document({**document, "efficiencies": {**values, "overlap": -1}})
    with pytest.raises(ValueError, match="missing or unknown: speed"):
        from_document({**document, "efficiencies": {**values, "speed": 1}})


def test_a_machine_without_a_gpu_is_assumed_all_through() -> None:
    cpu = find_gpu("cpu")
    assert cpu.figures is Basis.ASSUMED
    assert efficiencies_for(cpu).bases.prefill is Basis.ASSUMED
