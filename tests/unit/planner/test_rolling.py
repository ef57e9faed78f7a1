"""How pools replace their workers: never without one that serves, inside the budget, both pools in proportion."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.planning import seen, spec

from duet_engine.protocol import Role
from duet_operator.planner.guards import guards
from duet_operator.planner.rolling import Progress, Strategy, strategies, waits
from duet_operator.planner.types import Counts, Observation, PlanSpec


def ways(observation: Observation, wanted: PlanSpec) -> Mapping[Role, Strategy]:
    return strategies(observation, observation.present, wanted)


def one(prefill: int, decode: int, wanted: PlanSpec, role: Role = Role.DECODE) -> tuple[int, int, bool]:
    """Surge, missing ones, and whether the budget has room."""
    way = ways(seen(prefill, decode), wanted)[role]
    return way.max_surge, way.max_unavailable, way.fits


@pytest.mark.parametrize(
    ("decode", "changes", "expected"),
    [
        pytest.param(3, {}, (0, 1, True), id="several go one by one"),
        pytest.param(1, {}, (1, 0, True), id="the only one after its successor"),
        pytest.param(1, {"max_gpus": 3}, (1, 0, True), id="with room for it"),
        pytest.param(1, {"max_gpus": 2}, (1, 0, False), id="or not at all"),
        pytest.param(2, {"max_unavailable": 5}, (0, 1, True), id="never all of them"),
        pytest.param(3, {"max_surge": 2, "max_unavailable": 0}, (2, 0, True), id="the user's surge"),
        pytest.param(3, {"max_surge": 2, "max_unavailable": 0, "max_gpus": 5}, (1, 0, True), id="as far as it fits"),
        pytest.param(3, {"max_surge": 2, "max_unavailable": 0, "max_gpus": 4}, (1, 0, False), id="none fits"),
        pytest.param(3, {"max_surge": 2, "max_unavailable": 1, "max_gpus": 4}, (0, 1, True), id="nor is needed"),
    ],
)
def test_ways_of_decode_beside_one_prefill_worker(
    decode: int, changes: dict[str, int], expected: tuple[int, int, bool]
) -> None:
    assert one(1, decode, spec(**changes)) == expected


def test_room_goes_first_to_who_cannot_do_without() -> None:
    found = ways(seen(1, 3), spec(max_surge=2, max_unavailable=1, max_gpus=5))
    assert (found[Role.PREFILL].max_surge, found[Role.PREFILL].max_unavailable) == (1, 0)
    assert (found[Role.DECODE].max_surge, found[Role.DECODE].max_unavailable) == (0, 1)


def test_leaving_pods_hold_their_gpus_against_the_surge() -> None:
    observation = seen(0, 1, deflection_active=True)
    leaving = replace(observation, decode=replace(observation.decode, terminating=1))
    assert ways(observation, spec(max_gpus=2))[Role.DECODE].fits
    assert not ways(leaving, spec(max_gpus=2))[Role.DECODE].fits


def test_a_pool_that_serves_nothing_has_nothing_to_lose() -> None:
    """Else a spec that never worked couldn't be mended inside the budget."""
    observation = seen(1, 1)
    broken = replace(observation, decode=replace(observation.decode, ready=0, starting=1))
    for role in (Role.PREFILL, Role.DECODE):
        way = ways(broken, spec(max_gpus=2))[role]
        assert way.fits and way.max_unavailable == 1, "without a decode worker nobody is served"


@given(
    prefill=st.integers(0, 5),
    decode=st.integers(1, 5),
    surge=st.integers(0, 4),
    unavailable=st.integers(0, 4),
    room=st.none() | st.integers(0, 6),
)
def test_no_way_is_empty_dark_or_beyond_the_budget(
    prefill: int, decode: int, surge: int, unavailable: int, room: int | None
) -> None:
    budget = None if room is None else prefill + decode + room
    wanted = spec(max_surge=surge, max_unavailable=max(unavailable, int(surge == 0)), max_gpus=budget)
    found = ways(seen(prefill, decode, deflection_active=True), wanted)
    for role, way in found.items():
        assert way.max_surge + way.max_unavailable >= 1, "a Deployment refuses both as 0"
        count = Counts(prefill, decode).of(role)
        assert count == 0 or way.max_unavailable < count
    if budget is not None:
        extra = sum(way.max_surge for way in found.values() if way.fits)
        assert prefill + decode + extra <= budget


# --- both pools through a new revision ---


@dataclass
class Pool:
    """A pool under a Deployment's controller, as far as rolling goes."""

    replicas: int
    surge: int
    old: int = 0
    starting: int = 0
    new_ready: int = 0
    missing: int = 1

    def __post_init__(self) -> None:
        self.old = self.replicas

    @property
    def progress(self) -> Progress:
        return Progress(
            replicas=self.replicas,
            max_surge=self.surge,
            old=self.old,
            new=self.starting + self.new_ready,
            new_ready=self.new_ready,
        )

    def control(self, paused: bool) -> bool:
        """One move of its controller; whether there was any."""
        if paused:
            return False
        total = self.old + self.starting + self.new_ready
        unavailable = 0 if self.surge else self.missing
        if self.old and self.old + self.new_ready > self.replicas - unavailable:
            self.old -= 1
        elif self.starting + self.new_ready < self.replicas and total < self.replicas + self.surge:
            self.starting += 1
        else:
            return False
        return True

    def start(self) -> bool:
        if not self.starting:
            return False
        self.starting, self.new_ready = self.starting - 1, self.new_ready + 1
        return True


@given(
    prefill=st.integers(1, 6),
    decode=st.integers(1, 12),
    surges=st.booleans(),
    turns=st.lists(st.sampled_from(["prefill moves", "decode moves", "prefill starts", "decode starts"]), max_size=200),
)
def test_both_pools_come_through_a_new_revision_in_proportion(
    prefill: int, decode: int, surges: bool, turns: list[str]
) -> None:
    pools = {
        "prefill": Pool(prefill, surge=int(surges or prefill == 1)),
        "decode": Pool(decode, surge=int(surges or decode == 1)),
    }

    def move(name: str) -> bool:
        other = pools["decode" if name == "prefill" else "prefill"]
        return pools[name].control(waits(pools[name].progress, other.progress))

    def check() -> None:
        old = {name: pool.old for name, pool in pools.items()}
        for name, pool in pools.items():
            other = pools["decode" if name == "prefill" else "prefill"]
            if pool.old == 0 and pool.replicas > 1:
                assert other.old <= 2, f"old workers without a partner: {old}"
            assert pool.old + pool.new_ready >= 1

    for turn in turns:
        name, _, what = turn.partition(" ")
        (move(name) if what == "moves" else pools[name].start())
        check()
    while any(pool.start() | move(name) for name, pool in pools.items()):
        check()
    assert all(pool.old == 0 and pool.new_ready == pool.replicas for pool in pools.values()), "it came to a standstill"


def test_a_pool_that_is_empty_or_keeps_its_revision_holds_up_nobody() -> None:
    own = Progress(replicas=4, max_surge=0, old=2, new=2, new_ready=2)
    behind = Progress(replicas=4, max_surge=0, old=4, new=0, new_ready=0)
    assert waits(own, behind)
    assert not waits(own, replace(behind, replicas=0, old=0))
    assert not waits(own, replace(behind, old=0, new=4, new_ready=4))
    assert not waits(replace(own, old=0, new=4, new_ready=4), behind)


def test_no_pool_stands_still_halfway_through_a_step() -> None:
    """A paused Deployment fills up to its count, with pods of the old template too."""
    behind = Progress(replicas=4, max_surge=0, old=4, new=0, new_ready=0)
    assert not waits(Progress(replicas=4, max_surge=0, old=2, new=1, new_ready=1), behind)
    assert not waits(Progress(replicas=4, max_surge=1, old=2, new=2, new_ready=2), behind)


def test_growth_leaves_a_rollout_the_room_for_its_surge() -> None:
    """The Deployment's controller adds the worker a moment after the template is applied."""
    observation = seen(1, 1)
    rolling = replace(observation, decode=replace(observation.decode, surge=1))
    surging = replace(rolling, decode=replace(rolling.decode, starting=1))
    budget = spec(max_gpus=4)
    assert guards(observation, budget, loaded=True).growth_gpus == 4
    assert guards(rolling, budget, loaded=True).growth_gpus == 3
    assert guards(surging, budget, loaded=True).growth_gpus == 3, "the one that came is the one that was expected"
