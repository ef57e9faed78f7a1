"""Drains in any order of events: no request is lost, leases are renewed in time, and pools reach their targets."""

import asyncio

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.virtual_pool import LEASE_SECONDS, SETTLE_SECONDS, VirtualPool

INTERVAL_SECONDS = 5.0


class Drains(RuleBasedStateMachine):
    """A pool whose target, load and parts move in any order; the operator has its pass each interval."""

    def __init__(self) -> None:
        super().__init__()
        self.target = 3
        self.last_pass = 0.0
        self.unheard: set[str] = set()

    @initialize(replicas=st.integers(1, 5))
    def create(self, replicas: int) -> None:
        self.pool = VirtualPool(replicas=replicas)
        self.last_pass = self.pool.engines.now

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.settle()

    # --- what may happen ---

    @rule(count=st.integers(1, 5))
    def retarget(self, count: int) -> None:
        self.target = count

    @rule(count=st.integers(1, 6))
    def load(self, count: int) -> None:
        self.pool.arrive(count)

    @rule()
    def lull(self) -> None:
        self.pool.finish_all()

    @rule()
    def controllers(self) -> None:
        self.pool.control()

    @rule()
    def kubelet(self) -> None:
        self.pool.kubelet()

    @rule()
    def starts(self) -> None:
        self.pool.start_all()

    @rule(index=st.integers(0, 4))
    def cut_off(self, index: int) -> None:
        uids = sorted(self.pool.engines.by_uid)
        self.pool.engines.unreachable ^= {uids[index % len(uids)]}

    @rule()
    def watches_fall_behind(self) -> None:
        self.pool.deaf = True

    @rule()
    def watches_begin_anew(self) -> None:
        asyncio.run(self.pool.hear())

    @rule(seconds=st.floats(0.1, INTERVAL_SECONDS))
    def wait(self, seconds: float) -> None:
        self.pool.pass_time(seconds)

    @rule(rollout=st.booleans())
    def operate(self, rollout: bool) -> None:
        asyncio.run(self.pool.operate(self.target, rollout=rollout and self.pool.replicas >= self.target))
        self.last_pass = self.pool.engines.now
        self.unheard = set(self.pool.engines.unreachable)

    # --- what must hold ---

    @invariant()
    @precondition(lambda self: hasattr(self, "pool"))
    def nothing_was_lost(self) -> None:
        assert [name for name, requests, _ in self.pool.killed if requests] == []

    @invariant()
    @precondition(lambda self: hasattr(self, "pool"))
    def no_serving_worker_was_taken(self) -> None:
        assert [name for name, _, serving in self.pool.killed if serving] == []

    @invariant()
    @precondition(lambda self: hasattr(self, "pool"))
    def leases_outlast_the_next_passes(self) -> None:
        engines = self.pool.engines
        if engines.now > self.last_pass:
            return
        for pod in self.pool.draining():
            if pod.uid in engines.by_uid and pod.uid not in self.unheard:
                remaining = engines.by_uid[pod.uid].drain.lease_remaining_seconds(engines.now)
                assert remaining == LEASE_SECONDS, pod.name

    def settle(self) -> None:
        """Left alone, with no load, the pool becomes what it should be, and all its workers serve."""
        self.pool.engines.unreachable.clear()
        self.pool.finish_all()
        asyncio.run(self.pool.hear())
        for _ in range(60):
            self.pool.control()
            self.pool.start_all()
            asyncio.run(self.pool.operate(self.target))
            self.pool.pass_time(SETTLE_SECONDS)
        self.pool.control()
        self.pool.kubelet()
        assert self.pool.replicas == self.target
        assert self.pool.draining() == []
        assert all(engine.serving(self.pool.engines.now) for engine in self.pool.engines.by_uid.values())
        self.nothing_was_lost()


TestDrains = Drains.TestCase
TestDrains.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    # Shrinking a run of forty steps takes minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


async def test_a_dead_operator_gives_its_victim_back() -> None:
    pool = VirtualPool(replicas=3)
    pool.arrive(3)
    await pool.operate(2)
    pool.kubelet()
    assert len(pool.draining()) == 1
    pool.pass_time(LEASE_SECONDS + 0.1)
    assert pool.arrive(6) == 6
    assert all(engine.requests == 3 for engine in pool.engines.by_uid.values())


async def test_another_operator_goes_on_with_a_drain_from_what_pods_and_engines_say() -> None:
    pool = VirtualPool(replicas=2)
    pool.arrive(2)
    await pool.operate(1)
    pool.kubelet()
    successor = VirtualPool.__new__(VirtualPool)
    successor.__dict__ = dict(pool.__dict__)
    pool.finish_all()
    for _ in range(3):
        await successor.operate(1)
        pool.pass_time(2.5)
    assert pool.replicas == 1
    pool.control()
    assert [requests for _, requests, _ in pool.killed] == [0]


async def test_returning_load_keeps_the_worker() -> None:
    pool = VirtualPool(replicas=2)
    pool.arrive(2)
    await pool.operate(1)
    pool.kubelet()
    await pool.operate(2)
    pool.kubelet()
    assert pool.arrive(4) == 4
    assert [engine.requests for engine in pool.engines.by_uid.values()] == [3, 3]
    assert pool.draining() == []
