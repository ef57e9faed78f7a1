"""A drain lasts as long as its lease, can be taken back, and is final once the process ends."""

from hypothesis import given
from hypothesis import strategies as st

from duet_engine.drain import Drain, Stamp
from duet_engine.protocol import DrainPhase, Work

STAMP = Stamp(instance_id="i", sequence=1, written_at_seconds=0.0)
IDLE, BUSY = Work(), Work(running=1)


def drained(lease: float = 10.0, *, now: float = 0.0) -> Drain:
    drain = Drain(worker="w")
    drain.request(lease_seconds=lease, requested_by="operator", reason="scale down", now=now)
    return drain


def test_the_lease_runs_out_and_the_worker_serves_again() -> None:
    drain = drained(10)
    assert drain.phase(BUSY, 9.9) is DrainPhase.DRAINING
    assert drain.phase(IDLE, 9.9) is DrainPhase.DRAINED
    assert drain.phase(IDLE, 10.0) is DrainPhase.SERVING
    assert not drain.active(10.0)


def test_a_second_request_renews_the_lease() -> None:
    drain = drained(10)
    drain.request(lease_seconds=10, requested_by="operator", reason="", now=8)
    assert drain.active(17.9)
    assert drain.status(BUSY, 8.0, STAMP).lease_remaining_seconds == 10


def test_a_cancel_ends_a_drain_but_not_the_end_of_the_process() -> None:
    drain = drained()
    drain.cancel()
    assert drain.phase(BUSY, 1.0) is DrainPhase.SERVING
    drain.terminate()
    drain.cancel()
    assert drain.phase(IDLE, 1e9) is DrainPhase.TERMINATING
    assert drain.active(1e9)


def test_idle_time_counts_from_the_last_work() -> None:
    drain = drained()
    assert drain.status(IDLE, 1.0, STAMP).idle_seconds == 0
    assert drain.status(IDLE, 3.0, STAMP).idle_seconds == 2
    assert drain.status(BUSY, 4.0, STAMP).idle_seconds == 0
    assert drain.status(IDLE, 6.0, STAMP).idle_seconds == 0


Events = list[tuple[float, str]]


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["request", "cancel"])), max_size=20), st.floats(0, 200))
def test_a_worker_refuses_work_only_under_a_lease_that_was_asked_for(
    events: list[tuple[float, str]], at: float
) -> None:
    drain, ends_at = Drain(worker="w"), None
    for time, event in sorted(events):
        if time > at:
            break
        if event == "request":
            drain.request(lease_seconds=10, requested_by="", reason="", now=time)
            ends_at = time + 10
        else:
            drain.cancel()
            ends_at = None
    assert drain.active(at) == (ends_at is not None and at < ends_at)
