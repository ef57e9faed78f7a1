"""Pods and Deployments as the planner sees them: each pod in one state; what is stuck told apart from what waits."""

from dataclasses import replace
from typing import Any

import pytest
from tests.support.documents import document, report
from tests.support.workers import NOW, time_text

from duet_engine.protocol import Role
from duet_operator.memory import Memory
from duet_operator.observing import Trouble, observe, performance, pool_state, stuck, trouble
from duet_operator.pods import DRAIN_STARTED_ANNOTATION, Pod, read_pod
from duet_operator.pool_sight import PoolSight
from duet_operator.signals.picture import Signals
from duet_operator.signals.workers import freshest, states

DEADLINE_SECONDS = 60.0
GRACE_SECONDS = 600
CRASHED = {"restartCount": 2, "lastState": {"terminated": {"exitCode": 1}}}


def pod(name: str, *, age: float = 10.0, **fields: Any) -> Pod:
    defaults: dict[str, Any] = {"node": "n", "revision": "r1", "phase": "Running", "created_seconds": NOW - age}
    return Pod(namespace="default", name=name, uid=name, **{**defaults, **fields})


def ready(name: str, **fields: Any) -> Pod:
    return pod(name, ready=True, has_been_ready=True, **fields)


def unscheduled(name: str, **fields: Any) -> Pod:
    return pod(name, node="", phase="Pending", trouble="Unschedulable", **fields)


def sight(*pods: Pod, replicas: int = 3, **status: Any) -> PoolSight:
    template = {
        "metadata": {"labels": {"duetserve.io/revision": "r1"}},
        "spec": {"terminationGracePeriodSeconds": GRACE_SECONDS},
    }
    deployment = {
        "metadata": {"generation": 2},
        "spec": {"replicas": replicas, "template": template},
        "status": {"observedGeneration": 2, "replicas": replicas, "updatedReplicas": replicas, **status},
    }
    return PoolSight(deployment=deployment, pods=pods)


def state(of: PoolSight) -> tuple[int, int, int, int, int]:
    """Ready, starting, draining, replacing, pending too long."""
    lost = trouble(of, now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS)
    found = pool_state(of, {}, lost=lost)
    return found.ready, found.starting, found.draining, found.replacing, found.pending_too_long


# --- states of pods ---


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        pytest.param([], (0, 0, 0, 0, 0), id="none"),
        pytest.param([ready("a"), pod("b")], (1, 1, 0, 0, 0), id="one serves, one starts"),
        pytest.param([unscheduled("a")], (0, 1, 0, 0, 0), id="unschedulable, but not for long"),
        pytest.param([unscheduled("a", age=61)], (0, 0, 0, 0, 1), id="unschedulable for too long"),
        pytest.param([pod("a", trouble="CrashLoopBackOff", age=61)], (0, 0, 0, 0, 1), id="crash-looping"),
        pytest.param(
            [pod("a", trouble="CrashLoopBackOff", has_been_ready=True, ready_changed_seconds=NOW - 5, age=9999)],
            (0, 1, 0, 0, 0),
            id="began to crash a moment ago",
        ),
        pytest.param([pod("a", age=59)], (0, 1, 0, 0, 0), id="a start without trouble"),
        pytest.param([pod("a", age=61)], (0, 0, 0, 0, 1), id="a start that hangs"),
        pytest.param(
            [unscheduled("a", age=GRACE_SECONDS), ready("old", terminating=True)],
            (0, 0, 0, 1, 0),
            id="waits for its own predecessor",
        ),
        pytest.param(
            [unscheduled("a", age=GRACE_SECONDS), unscheduled("b", age=GRACE_SECONDS), ready("old", terminating=True)],
            (0, 0, 0, 1, 1),
            id="two wait, one predecessor",
        ),
        pytest.param(
            [unscheduled("a", age=GRACE_SECONDS + DEADLINE_SECONDS + 1), ready("old", terminating=True)],
            (0, 0, 0, 0, 1),
            id="its predecessor's node is gone for good",
        ),
        pytest.param(
            [pod("a", age=9999, has_been_ready=True, annotations={DRAIN_STARTED_ANNOTATION: time_text(NOW)})],
            (0, 0, 1, 0, 0),
            id="drains",
        ),
        pytest.param([ready("a", phase="Failed")], (0, 0, 0, 0, 0), id="evicted"),
    ],
)
def test_each_pod_is_in_one_state(pods: list[Pod], expected: tuple[int, ...]) -> None:
    assert state(sight(*pods)) == expected


def taking(of: PoolSight, gpus: int, kind: str = "nvidia.com/gpu") -> PoolSight:
    """Each of its workers takes so many GPUs."""
    assert of.deployment is not None
    template = of.deployment["spec"]["template"]
    template["spec"]["containers"] = [{"resources": {"limits": {kind: str(gpus), "memory": "1Gi"}}}]
    return of


@pytest.mark.parametrize(
    ("own", "other", "replacing"),
    [
        pytest.param(
            taking(sight(unscheduled("a"), unscheduled("b")), 1),
            taking(sight(ready("d", terminating=True)), 2),
            2,
            id="two wait for the two GPUs of one",
        ),
        pytest.param(
            taking(sight(unscheduled("a")), 2), taking(sight(ready("d", terminating=True)), 1), 0, id="half of a place"
        ),
        pytest.param(
            taking(sight(unscheduled("a")), 1),
            taking(sight(ready("d", terminating=True), unscheduled("e")), 1),
            0,
            id="the other pool waits for it itself",
        ),
        pytest.param(
            taking(sight(unscheduled("a")), 1),
            taking(sight(ready("d", terminating=True)), 1, "nvidia.com/mig-3g.40gb"),
            0,
            id="another kind",
        ),
        pytest.param(
            taking(sight(unscheduled("a"), ready("o", terminating=True)), 2),
            taking(sight(ready("d")), 2),
            1,
            id="its own predecessor",
        ),
    ],
)
def test_a_pod_may_wait_for_a_gpu_of_the_other_pool(own: PoolSight, other: PoolSight, replacing: int) -> None:
    found = trouble(own, other=other, now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS)
    assert found.replacing == replacing


def test_only_pods_that_no_node_took_are_unplaced() -> None:
    of = sight(unscheduled("a", age=61), pod("b", trouble="CrashLoopBackOff", age=61), ready("c"))
    lost = trouble(of, now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS)
    assert (lost.pods, lost.unplaced) == (2, 1)


def test_a_predecessor_that_only_the_deployment_tells_of_still_makes_room() -> None:
    assert state(sight(unscheduled("a", age=GRACE_SECONDS), terminatingReplicas=1)) == (0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("pods", "replicas", "room"),
    [
        pytest.param(["placed"] * 3 + ["unplaced"], 4, 3, id="a surplus"),
        pytest.param(["placed"] * 3 + ["unplaced"], 3, 3, id="a surplus that is counted out, but not deleted yet"),
        pytest.param(["placed"] * 4 + ["unplaced"], 4, 4, id="a successor beyond the count"),
        pytest.param(["placed"] * 4, 4, None, id="all have a place"),
    ],
)
def test_the_room_of_a_pool_is_what_has_a_place(pods: list[str], replicas: int, room: int | None) -> None:
    present = [
        ready(f"{number}") if kind == "placed" else unscheduled(f"{number}", age=61) for number, kind in enumerate(pods)
    ]
    of = sight(*present, replicas=replicas)
    lost = trouble(of, now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS)
    memory = Memory(attainment_window_seconds=60.0)
    rooms = memory.learn_room(
        {Role.DECODE: of}, {Role.DECODE: lost}, now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS
    )
    assert ({role: found.count for role, found in rooms.items()}) == ({} if room is None else {Role.DECODE: room})


def test_leaving_pods_hold_their_gpus_until_they_are_gone() -> None:
    leaving = ready("evicted", terminating=True)
    never_placed = pod("never placed", node="", terminating=True)
    of = sight(ready("a"), pod("successor"), leaving, never_placed, replicas=2)
    assert pool_state(of, {}, lost=Trouble()).terminating == 1


def test_a_count_is_known_once_its_controller_tells_the_same() -> None:
    assert sight(ready("a"), replicas=1).counted
    assert not sight(ready("a"), replicas=2).counted
    assert not sight(ready("a"), replicas=1, observedGeneration=1).counted


def test_a_quota_that_refuses_pods_counts_as_pending_after_the_deadline() -> None:
    def refused(seconds: float) -> PoolSight:
        condition = {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": "exceeded quota",
            "lastTransitionTime": time_text(NOW - seconds),
        }
        return sight(ready("a"), replicas=3, conditions=[condition])

    assert state(refused(59)) == (1, 0, 0, 0, 0)
    assert state(refused(61)) == (1, 0, 0, 0, 2)
    found = trouble(refused(61), now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS)
    assert found == Trouble(pods=2, unplaced=2, reason="FailedCreate", example="exceeded quota")


# --- rollouts ---


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        pytest.param(sight(ready("a")), False, id="all of this template"),
        pytest.param(sight(ready("a", revision="r0")), True, id="an old revision serves"),
        pytest.param(sight(ready("a", revision="r0", terminating=True)), False, id="the last old one leaves"),
        pytest.param(sight(ready("a"), updatedReplicas=2), True, id="its controller tells"),
        pytest.param(sight(ready("a"), observedGeneration=1, updatedReplicas=2), False, id="a count just changed"),
        pytest.param(PoolSight(deployment=None, pods=()), False, id="not created yet"),
    ],
)
def test_a_rollout_is_told_from_a_change_of_count(of: PoolSight, expected: bool) -> None:
    assert of.rollout_in_progress is expected


def test_a_stuck_rollout_says_why() -> None:
    condition = {"type": "Progressing", "status": "False", "message": "timed out progressing"}
    told = stuck(sight(ready("a"), conditions=[condition]), now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS)
    assert told == "1 of 3 pods have the new template, and timed out progressing"
    assert stuck(sight(ready("a")), now_seconds=NOW, deadline_seconds=DEADLINE_SECONDS) is None


# --- the observation ---


def test_deflection_is_active_when_a_live_decode_worker_says_so() -> None:
    def active(*pods: Pod, **of_report: Any) -> bool:
        known = states(freshest([document(workers=[report("d", **of_report)])]), pods, stale_after_seconds=15.0)
        pools = {Role.PREFILL: sight(), Role.DECODE: sight(*pods)}
        signals = Signals(states=known, profiles={}, silent={})
        lost = dict.fromkeys(pools, Trouble())
        return observe(pools, signals, lost, rooms={}, cold_start_p90_seconds=None, now_seconds=NOW).deflection_active

    assert active(ready("d"))
    assert not active(ready("d"), deflects=False)
    assert not active(ready("d"), draining=True)
    assert not active(ready("d", terminating=True))
    assert not active()


def test_what_nobody_told_is_unknown() -> None:
    assert performance({}).decode is None


# --- pods ---


def manifest(**status: Any) -> dict[str, Any]:
    metadata = {"namespace": "default", "name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}
    ports = [{"name": "http", "containerPort": 31000}, {"containerPort": 9}]
    spec = {"nodeName": "n", "containers": [{"name": "engine", "ports": ports}]}
    return {"metadata": metadata, "spec": spec, "status": {"startTime": "2026-01-01T00:00:01Z", **status}}


def condition(kind: str, status: str, at: str, **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": at, **more}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], (False, False)),
        ([condition("Ready", "False", "2026-01-01T00:00:01Z")], (False, False)),
        ([condition("Ready", "True", "2026-01-01T00:01:00Z")], (True, True)),
        ([condition("Ready", "False", "2026-01-01T00:01:00Z")], (False, True)),
    ],
)
def test_a_pod_that_was_ready_is_told_from_one_that_never_was(
    conditions: list[dict[str, str]], expected: tuple[bool, bool]
) -> None:
    found = read_pod(manifest(conditions=conditions))
    assert (found.ready, found.has_been_ready) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, None),
        ({"conditions": [condition("PodScheduled", "False", "", reason="Unschedulable")]}, "Unschedulable"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, None),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, "ImagePullBackOff"),
        ({"containerStatuses": [{**CRASHED, "state": {"running": {}}}]}, "CrashLoopBackOff"),
        ({"containerStatuses": [{**CRASHED, "state": {"running": {}}, "ready": True}]}, None),
        ({"containerStatuses": [{"state": {"running": {}}, "restartCount": 0}]}, None),
        ({"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, "CrashLoopBackOff"),
    ],
)
def test_trouble_is_named_as_the_cluster_names_it(status: dict[str, Any], expected: str | None) -> None:
    assert read_pod(manifest(**status)).trouble == expected


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"name": "engine", "state": {"running": {}}}, False),
        ({"name": "engine", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}, True),
        ({"name": "engine", "state": {"terminated": {"exitCode": 1}}}, True),
        ({"name": "sidecar", "state": {"terminated": {"exitCode": 1}}}, False),
    ],
)
def test_only_a_pod_whose_engine_ended_holds_nothing_any_more(container: dict[str, Any], expected: bool) -> None:
    was_ready = [condition("Ready", "False", "2026-01-01T00:01:00Z")]
    found = read_pod(manifest(conditions=was_ready, containerStatuses=[container]))
    assert (found.engine_stopped, found.may_hold_requests) == (expected, not expected)


def test_named_ports_and_addresses_of_both_families() -> None:
    found = read_pod(manifest(podIP="10.0.0.7"))
    assert found.endpoint("http", 30000) == "10.0.0.7:31000"
    assert found.endpoint("admin", 8001) == "10.0.0.7:8001"
    assert replace(found, address="fd00::7").endpoint("http", 30000) == "[fd00::7]:31000"


def test_annotations_that_are_no_times_are_none() -> None:
    spoilt = pod("a", annotations={DRAIN_STARTED_ANNOTATION: "yesterday"})
    assert spoilt.draining_since_seconds is None


def test_a_pool_may_surge_only_while_it_rolls() -> None:
    rolling, done = sight(ready("a", revision="r0")), sight(ready("a"), replicas=1)
    for each in (rolling, done):
        assert each.deployment is not None
        each.deployment["spec"]["strategy"] = {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}
    assert (rolling.surge, done.surge) == (2, 0)


def test_pods_of_an_older_template_are_told_though_the_revision_is_the_same() -> None:
    of = sight(ready("a", template="t1"), ready("b", template="t2"), replicas=2)
    assert of.deployment is not None
    of.deployment["spec"]["template"]["metadata"]["labels"]["duetserve.io/template"] = "t2"
    assert of.rollout_in_progress
    assert [pod.name for pod in of.updated] == ["b"]
