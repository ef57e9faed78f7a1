"""Drains that somebody asks for by hand: each ends in a new worker, and no pool goes dark by them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.operator_bench import KEY
from tests.support.workers import drained, draining, pool, ready, rules, starting
from tests.unit.operator.test_relocation import Cluster

from duet_operator.cluster import POD
from duet_operator.drain import decide
from duet_operator.drain_actions import Hold, Remove, Renew, Replace, Start, Worker
from duet_operator.pods import DRAIN_ANNOTATION


def ask(cluster: Cluster, *names: str, wish: str | None = "true") -> None:
    """As somebody annotates pods."""
    for name in names:
        cluster.bench.cluster.edit(POD, KEY.namespace, name, {"metadata": {"annotations": {DRAIN_ANNOTATION: wish}}})


def all_are_new(cluster: Cluster) -> bool:
    return not {pod.name for pod in cluster.bench.pods("decode")} & cluster.names


# --- the whole pool ---


@pytest.mark.parametrize(
    ("count", "spec"),
    [
        pytest.param(1, {}, id="one"),
        pytest.param(1, {"scaling.mode": "Manual"}, id="one by hand"),
        pytest.param(3, {}, id="three"),
        pytest.param(3, {"scaling.maxGPUs": 3}, id="three without room for more"),
        pytest.param(3, {"scaling.mode": "Recommend"}, id="three whose count is somebody else's"),
    ],
)
async def test_a_pool_whose_workers_are_all_drained_always_has_one_that_serves(
    count: int, spec: dict[str, Any]
) -> None:
    cluster = await Cluster.serving(count)
    cluster.bench.change_spec(scaling={key.removeprefix("scaling."): value for key, value in spec.items()})
    ask(cluster, *cluster.names)
    await cluster.steps(20)
    assert all_are_new(cluster)
    assert len(cluster.serving_on()) == cluster.bench.replicas("decode") == count
    assert cluster.least_serving >= 1
    assert cluster.note is None


async def test_the_last_worker_gets_its_successor_first_and_the_history_says_so() -> None:
    cluster = await Cluster.serving(1)
    ask(cluster, *cluster.names)
    await cluster.steps(3, node=None)
    assert (cluster.bench.replicas("decode"), cluster.note) == (2, "1/2")
    (name,) = cluster.names
    assert cluster.bench.condition("Progressing")[1:] == (
        "Scaling",
        "decode stays 1, 1 starting, 1 more until those whose successors they are have left,"
        f" {name} drains once another worker serves",
    )
    await cluster.steps(8)
    history = cluster.bench.duet["status"]["history"]
    assert [(each["reason"], each["toReplicas"]) for each in history[-2:]] == [("ByHand", 2), ("ByHand", 1)]
    assert cluster.bench.condition("Progressing")[1] == "Settled"


@pytest.mark.parametrize(
    ("scaling", "why"),
    [
        ({"maxGPUs": 1}, "scaling.maxGPUs 1 has no room for one more"),
        ({"mode": "Recommend"}, "in scaling.mode Recommend none is asked for"),
    ],
)
async def test_where_no_successor_is_asked_for_the_last_worker_stays_and_it_is_said_why(
    scaling: dict[str, Any], why: str
) -> None:
    cluster = await Cluster.serving(1)
    cluster.bench.change_spec(scaling=scaling)
    ask(cluster, *cluster.names)
    await cluster.steps(6)
    (name,) = cluster.names
    assert [pod.name for pod in cluster.serving_on()] == [name]
    assert cluster.bench.condition("Progressing")[2] == (
        f"decode stays 1, {name} drains once another worker serves ({why})"
    )


async def test_a_request_that_is_withdrawn_takes_the_successor_back() -> None:
    cluster = await Cluster.serving(1)
    ask(cluster, *cluster.names)
    await cluster.steps(2, node=None)
    ask(cluster, *cluster.names, wish=None)
    await cluster.steps(4, node=None)
    assert {pod.name for pod in cluster.bench.pods("decode")} == cluster.names
    assert (cluster.bench.replicas("decode"), cluster.note) == (1, None)


async def test_a_pool_that_is_to_be_empty_keeps_nobody() -> None:
    cluster = await Cluster.serving(1, {"pools.decode.minReplicas": 0})
    cluster.bench.planner.decode = 0
    ask(cluster, *cluster.names)
    await cluster.steps(6)
    assert (cluster.bench.replicas("decode"), cluster.bench.pods("decode")) == (0, [])


# --- one decision ---


def test_one_of_all_is_held_and_the_others_begin() -> None:
    busy = ready("c", work=9, by_hand=True)
    actions = decide(pool(ready("a", by_hand=True), ready("b", by_hand=True), busy, target=3), rules())
    assert [each.pod.name for each in actions if isinstance(each, Start)] == ["a", "b"]
    assert [each.pod.name for each in actions if isinstance(each, Hold)] == ["c"]


@pytest.mark.parametrize("other", [starting("b"), draining("b", left=1), ready("b", serving=False)])
def test_whoever_does_not_serve_stands_in_for_nobody(other: Worker) -> None:
    actions = decide(pool(ready("a", by_hand=True), other, target=2), rules())
    assert [each.pod.name for each in actions if isinstance(each, Hold)] == ["a"]


def test_a_drain_by_hand_that_is_under_way_is_one_of_those_that_leave() -> None:
    """Else a lower target would drain another one too, and call that off when the first has left."""
    actions = decide(pool(draining("a", left=1, by_hand=True), ready("b"), target=1), rules())
    assert [type(each) for each in actions] == [Renew]


def test_who_is_drained_and_still_shown_as_ready_is_waited_for_where_the_pool_shrinks() -> None:
    """Kubernetes takes unready pods first; replaced, it would be one too many again."""
    asked = drained("a", by_hand=True)
    shown = replace(asked, pod=replace(asked.pod, ready=True))
    actions = decide(pool(shown, ready("b"), target=1), rules())
    assert [type(each) for each in actions] == [Renew]
    actions = decide(pool(shown, ready("b"), target=2), rules())
    assert [type(each) for each in actions] == [Replace]


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Worker], int, frozenset[str]]:
    def worker(name: str) -> Worker:
        by_hand = draw(st.booleans())
        kind = draw(st.sampled_from(("ready", "unready", "starting", "draining", "drained")))
        if kind == "starting":
            return starting(name)
        if kind in ("draining", "drained"):
            return draining(name, left=1, by_hand=by_hand) if kind == "draining" else drained(name, by_hand=by_hand)
        return ready(name, serving=kind == "ready", by_hand=by_hand, work=draw(st.integers(0, 3)))

    workers = [worker(name) for name in "abcde"[: draw(st.integers(1, 5))]]
    moving = draw(st.frozensets(st.sampled_from([each.pod.uid for each in workers])))
    return workers, draw(st.integers(1, 5)), moving


@given(pools())
def test_no_decision_drains_the_last_worker_that_serves(drawn: tuple[list[Worker], int, frozenset[str]]) -> None:
    workers, target, moving = drawn
    serving = {each.pod.uid for each in workers if each.pod.ready and not each.draining}
    elsewhere = {uid for uid in serving if uid not in moving}
    # Successors serve before anybody moves: that's the part of `relocation`.
    actions = decide(replace(pool(*workers, target=target), replaced=moving if elsewhere else frozenset()), rules())
    begun = {each.pod.uid for each in actions if isinstance(each, Start | Replace)}
    begun |= {pod.uid for each in actions if isinstance(each, Remove) for pod in (*each.drained, *each.at_once)}
    assert not serving or serving - begun
