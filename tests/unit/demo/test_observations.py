"""The bill from pods' events, and the small judgements on series."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from duet_dev.demo.observations import (
    Lease,
    Leases,
    PoolCounts,
    ScaleAction,
    fell,
    gpu_seconds,
    gpus_over_time,
    rose_and_fell,
)

times = st.floats(min_value=0, max_value=100)
leases = st.lists(
    st.builds(
        lambda start, length, gpus, open_end: Lease(
            pod="pod", role="decode", gpus=gpus, start_seconds=start, end_seconds=None if open_end else start + length
        ),
        times,
        times,
        st.integers(1, 8),
        st.booleans(),
    ),
    max_size=8,
)


def pod(name: str, *, role: str = "decode", scheduled: str | None = "2026-01-01T00:00:10Z", gpus: str = "1") -> Any:
    condition = {"type": "PodScheduled", "status": "True" if scheduled else "False", "lastTransitionTime": scheduled}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"duetserve.io/role": role}},
        "spec": {"containers": [{"resources": {"limits": {"nvidia.com/mig-3g.40gb": gpus, "memory": "1Gi"}}}, {}]},
        "status": {"conditions": [condition]},
    }


START = 1767225610.0


def test_a_pod_is_billed_from_scheduled_to_gone() -> None:
    bill = Leases()
    bill.see(pod("a", scheduled=None))
    assert bill.all == ()
    bill.see(pod("a", gpus="2"))
    bill.see(pod("a", gpus="2"), gone_at_seconds=START + 30)
    assert gpu_seconds(bill.all, START - 100, START + 100) == 60


def test_a_pod_that_is_still_there_is_billed_to_the_end_of_the_window() -> None:
    bill = Leases()
    bill.see(pod("a"))
    assert gpu_seconds(bill.all, START + 5, START + 25) == 20


def test_gateways_and_pods_that_never_ran_cost_nothing() -> None:
    bill = Leases()
    bill.see(pod("gateway", role="gateway"))
    bill.see(pod("pending", scheduled=None), gone_at_seconds=START)
    assert bill.all == ()


@given(leases, times, times)
def test_the_bill_is_the_area_under_the_steps(found: list[Lease], start: float, length: float) -> None:
    end = start + length
    steps = gpus_over_time(found, start, end)
    ends = [moment for moment, _ in steps[1:]] + [end]
    area = sum(held * (until - since) for (since, held), until in zip(steps, ends, strict=True))
    assert abs(area - gpu_seconds(found, start, end)) < 1e-6 * (1 + area)
    assert all(held >= 0 for _, held in steps)


@given(leases, times, times, times)
def test_windows_add_up(found: list[Lease], start: float, first: float, second: float) -> None:
    middle, end = start + first, start + first + second
    whole = gpu_seconds(found, start, end)
    assert abs(whole - gpu_seconds(found, start, middle) - gpu_seconds(found, middle, end)) < 1e-6 * (1 + whole)


def test_rising_and_falling() -> None:
    assert rose_and_fell([1, 4, 2])
    assert not rose_and_fell([1, 4, 4])
    assert not rose_and_fell([4, 2, 1])
    assert not rose_and_fell([])
    assert fell([4, 2])
    assert not fell([1, 1, 2])


def test_status_is_read_with_its_absent_numbers() -> None:
    assert PoolCounts.of({"ready": 2, "draining": None, "recommended": 9}) == PoolCounts(ready=2)
    assert PoolCounts.of({"ready": 2, "starting": 1, "draining": 1}).held == 4


def test_a_history_entry_is_read() -> None:
    entry = {
        "time": "2026-01-01T00:00:10Z",
        "pool": "decode",
        "fromReplicas": 1,
        "toReplicas": 3,
        "reason": "Demand",
        "message": "decode 1→3",
    }
    assert ScaleAction.of(entry) == ScaleAction(
        time_seconds=START, pool="decode", from_replicas=1, to_replicas=3, message="decode 1→3"
    )
