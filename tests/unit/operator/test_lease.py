"""The Lease gate: one holder at a time, whoever is slow, paused, partitioned or gone."""

import asyncio
from typing import Any

import pytest

from duet_operator.lease import LeaseGate, LeaseLostError

LEASE_SECONDS = 15.0


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A Lease with the API server's rules."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.broken = False
        self.reads = 0

    async def read(self) -> dict[str, Any] | None:
        if self.broken:
            raise ConnectionError("no route to the API server")
        self.reads += 1
        return self.lease

    async def write(self, spec: dict[str, Any], *, over: dict[str, Any] | None) -> dict[str, Any]:
        if self.broken:
            raise ConnectionError("no route to the API server")
        seen = None if over is None else over["metadata"]["resourceVersion"]
        present = None if self.lease is None else self.lease["metadata"]["resourceVersion"]
        if seen != present:
            raise RuntimeError("409 Conflict")
        self.version += 1
        self.lease = {"metadata": {"resourceVersion": str(self.version)}, "spec": spec}
        return self.lease


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> Store:
    return Store()


def gate(store: Store, clock: Clock, name: str) -> LeaseGate:
    return LeaseGate(store, identity=name, lease_seconds=LEASE_SECONDS, clock=clock)


def may_write(holder: LeaseGate) -> bool:
    try:
        holder.check()
    except LeaseLostError:
        return False
    return True


async def test_the_first_one_holds_it_and_the_second_waits(store: Store, clock: Clock) -> None:
    one, two = gate(store, clock, "one"), gate(store, clock, "two")
    await one.renew()
    await two.renew()
    assert (may_write(one), may_write(two)) == (True, False)
    assert store.lease is not None and store.lease["spec"]["holderIdentity"] == "one"


async def test_renewal_holds_it_for_ever(store: Store, clock: Clock) -> None:
    one, two = gate(store, clock, "one"), gate(store, clock, "two")
    for _ in range(20):
        await one.renew()
        await two.renew()
        assert (may_write(one), may_write(two)) == (True, False)
        clock.now += 5.0
    assert store.lease is not None and store.lease["spec"]["leaseTransitions"] == 1


async def test_a_holder_renews_by_one_request_and_looks_again_after_any_trouble(store: Store, clock: Clock) -> None:
    """Where the API server takes seconds to answer, two of them would be too long for the time that a try has."""
    one = gate(store, clock, "one")
    for _ in range(5):
        await one.renew()
        clock.now += 2.5
    assert (store.reads, store.version) == (1, 5)
    assert store.lease is not None
    store.lease = {**store.lease, "metadata": {"resourceVersion": "edited"}}
    await one.renew()
    assert (store.reads, store.version) == (1, 5)
    await one.renew()
    assert (store.reads, store.version) == (2, 6)
    assert may_write(one)


async def test_a_holder_in_trouble_tries_again_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its time is over there is room for one try after a slow one, and a standby needn't hurry."""
    clock = Clock()
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += seconds
        store.broken = clock.now > 1003.0

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(LeaseLostError):
        await gate(store, clock, "one").run()
    assert pauses[:2] == [2.5, 2.5]
    assert set(pauses[2:]) == {0.5}
    assert clock.now - 1000.0 == pytest.approx(12.5, abs=0.6)


async def test_a_dead_holder_is_followed_after_its_lease_and_never_before(store: Store, clock: Clock) -> None:
    one, two = gate(store, clock, "one"), gate(store, clock, "two")
    await one.renew()
    for _ in range(40):
        await two.renew()
        assert not (may_write(one) and may_write(two))
        if may_write(two):
            break
        clock.now += 1.0
    assert may_write(two)
    assert clock.now - 1000.0 >= LEASE_SECONDS
    await one.renew()
    assert not may_write(one)


async def test_any_error_is_not_renewed(store: Store, clock: Clock) -> None:
    one = gate(store, clock, "one")
    await one.renew()
    store.broken = True
    clock.now += 9.0
    await one.renew()
    assert may_write(one)
    clock.now += 1.1
    assert not may_write(one)
    with pytest.raises(LeaseLostError):
        await one.run()


async def test_a_time_out_without_words_is_named(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow() -> None:
        raise TimeoutError

    monkeypatch.setattr(store, "read", slow)
    await gate(store, clock, "one").renew()
    assert "the Lease wasn't renewed: TimeoutError" in caplog.text


async def test_a_paused_process_may_not_write_when_it_goes_on(store: Store, clock: Clock) -> None:
    one, two = gate(store, clock, "one"), gate(store, clock, "two")
    await one.renew()
    await two.renew()
    clock.now += 60.0
    await two.renew()
    assert (may_write(one), may_write(two)) == (False, True)


async def test_two_that_want_it_at_once_do_not_both_get_it(store: Store, clock: Clock) -> None:
    one, two = gate(store, clock, "one"), gate(store, clock, "two")
    empty = await store.read()
    await one.renew()

    async def stale_read() -> dict[str, Any] | None:
        return empty

    fresh_read, store.read = store.read, stale_read  # type: ignore[method-assign]
    await two.renew()
    store.read = fresh_read  # type: ignore[method-assign]
    assert (may_write(one), may_write(two)) == (True, False)


async def test_a_released_lease_is_taken_at_once(store: Store, clock: Clock) -> None:
    one, two = gate(store, clock, "one"), gate(store, clock, "two")
    await one.renew()
    await one.release()
    await two.renew()
    assert (may_write(one), may_write(two)) == (False, True)


async def test_who_never_held_it_releases_nothing(store: Store, clock: Clock) -> None:
    one, two = gate(store, clock, "one"), gate(store, clock, "two")
    await one.renew()
    await two.release()
    assert store.lease is not None and store.lease["spec"]["holderIdentity"] == "one"


async def test_who_lost_it_asks_nobody_and_ends(store: Store, clock: Clock) -> None:
    """The API server may not answer, and another operator may hold it already."""
    one = gate(store, clock, "one")
    await one.renew()
    clock.now += LEASE_SECONDS
    before = store.version
    await one.release()
    assert store.version == before
