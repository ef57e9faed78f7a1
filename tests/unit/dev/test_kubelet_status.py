"""Phases, conditions, probe verdicts, back-off and devices of the process kubelet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_dev.kubelet.backoff import Backoff
from duet_dev.kubelet.devices import VISIBLE_DEVICES, Devices, NotEnoughDevices, requested
from duet_dev.kubelet.probes import Streak
from duet_dev.kubelet.status import Condition, ContainerView, conditions, phase, terminated, waiting
from duet_dev.kubelet.transitions import Transitions


def view(name: str = "main", *, ready: bool = False, sidecar: bool = False, **state: object) -> ContainerView:
    (kind, detail), *last = state.items()
    return ContainerView(
        name=name,
        state={kind: detail},
        last_state=dict(last),
        ready=ready,
        started=kind == "running",
        sidecar=sidecar,
    )


RUNNING = view(running={}, ready=True)
STARTING = view(waiting={"reason": "ContainerCreating"})
CRASHED = view(waiting={"reason": "CrashLoopBackOff"}, terminated={"exitCode": 1})
DONE = view(terminated={"exitCode": 0})
FAILED = view(terminated={"exitCode": 2})
INIT_DONE = view("init", terminated={"exitCode": 0})
INIT_FAILED = view("init", terminated={"exitCode": 1})
INIT_RUNNING = view("init", running={})
SIDECAR = view("side", running={}, sidecar=True, ready=True)


@pytest.mark.parametrize(
    ("policy", "init", "main", "expected"),
    [
        ("Always", [], [STARTING], "Pending"),
        ("Always", [], [RUNNING], "Running"),
        ("Always", [], [RUNNING, STARTING], "Pending"),
        ("Always", [], [CRASHED], "Running"),
        ("Always", [], [FAILED], "Running"),
        ("Never", [], [DONE], "Succeeded"),
        ("Never", [], [DONE, FAILED], "Failed"),
        ("Never", [], [DONE, RUNNING], "Running"),
        ("OnFailure", [], [DONE], "Succeeded"),
        ("OnFailure", [], [FAILED], "Running"),
        ("Always", [INIT_RUNNING], [STARTING], "Pending"),
        ("Always", [INIT_FAILED], [STARTING], "Pending"),
        ("Never", [INIT_FAILED], [STARTING], "Failed"),
        ("Always", [INIT_DONE], [RUNNING], "Running"),
        ("Never", [INIT_DONE, SIDECAR], [DONE], "Succeeded"),
    ],
)
def test_phases(policy: str, init: list[ContainerView], main: list[ContainerView], expected: str) -> None:
    assert phase(policy, init, main) == expected


def by_kind(found: list[Condition]) -> dict[str, Condition]:
    return {condition.kind: condition for condition in found}


def test_a_ready_pod_has_every_condition() -> None:
    found = by_kind(conditions("Running", [INIT_DONE], [RUNNING], gates={"example.com/open": True}))
    assert {kind: condition.value for kind, condition in found.items()} == {
        "PodReadyToStartContainers": True,
        "Initialized": True,
        "ContainersReady": True,
        "Ready": True,
    }


def test_unready_containers_are_named() -> None:
    unready = view("slow", running={})
    found = by_kind(conditions("Running", [], [RUNNING, unready], gates={}))
    assert found["Ready"] == Condition("Ready", False, "ContainersNotReady", "containers with unready status: [slow]")


def test_a_closed_gate_holds_ready_but_not_containers_ready() -> None:
    found = by_kind(conditions("Running", [], [RUNNING], gates={"example.com/open": False}))
    assert found["ContainersReady"].value
    assert found["Ready"].reason == "ReadinessGatesNotReady"
    assert "example.com/open" in found["Ready"].message


def test_a_pod_that_is_over_is_not_ready_and_says_why() -> None:
    assert by_kind(conditions("Succeeded", [], [DONE], gates={}))["Ready"].reason == "PodCompleted"
    assert by_kind(conditions("Failed", [], [FAILED], gates={}))["Ready"].reason == "PodFailed"


def test_incomplete_init_containers_are_named() -> None:
    found = by_kind(conditions("Pending", [INIT_RUNNING], [STARTING], gates={}))
    assert found["Initialized"] == Condition(
        "Initialized", False, "ContainersNotInitialized", "containers with incomplete status: [init]"
    )


def test_states_are_as_the_api_has_them() -> None:
    assert waiting("ImagePullBackOff", "why") == {"waiting": {"reason": "ImagePullBackOff", "message": "why"}}
    assert waiting("ContainerCreating") == {"waiting": {"reason": "ContainerCreating"}}
    ended = terminated(137, "Error", started="a", finished="b")
    assert ended == {"terminated": {"exitCode": 137, "reason": "Error", "startedAt": "a", "finishedAt": "b"}}


def test_a_transition_time_changes_with_the_value_only() -> None:
    old = "2026-01-01T00:00:00Z"
    transitions = Transitions([{"type": "Ready", "status": "True", "lastTransitionTime": old}])
    same = transitions.dated(Condition("Ready", True, "Changed"))
    assert (same["lastTransitionTime"], same["reason"]) == (old, "Changed")
    changed = transitions.dated(Condition("Ready", False))
    assert changed["lastTransitionTime"] > old
    assert changed["reason"] is None  # takes an old reason away in a strategic merge


def test_verdicts_need_a_full_streak() -> None:
    streak = Streak(success_threshold=2, failure_threshold=3)
    results = [True, True, True, False, False, True, False, False, False, False]
    expected = [None, True, True, None, None, None, None, None, False, False]
    assert [streak.verdict(result) for result in results] == expected


@given(st.lists(st.booleans()), st.integers(1, 5), st.integers(1, 5))
def test_a_verdict_is_always_the_result_repeated_often_enough(results: list[bool], success: int, failure: int) -> None:
    streak = Streak(success, failure)
    for index, result in enumerate(results):
        verdict = streak.verdict(result)
        needed = success if result else failure
        recent = results[max(0, index + 1 - needed) : index + 1]
        enough = len(recent) == needed and set(recent) == {result}
        assert verdict == (result if enough else None)


def test_pauses_double_up_to_the_longest_and_start_over_after_a_long_run() -> None:
    now = 0.0
    backoff = Backoff(1, 10, clock=lambda: now)
    pauses = []
    for _ in range(6):
        backoff.started()
        pauses.append(backoff.next_seconds())
    assert pauses == [1, 2, 4, 8, 10, 10]
    backoff.started()
    now += 20
    assert backoff.next_seconds() == 1


def test_devices_are_distinct_and_come_back() -> None:
    devices = Devices("gpu-0", {"nvidia.com/gpu": "2", "nvidia.com/mig-3g.40gb": "1", "cpu": "64"})
    first = devices.allocate("a", {"nvidia.com/gpu": 1})[VISIBLE_DEVICES]
    second = devices.allocate("b", {"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 1})[VISIBLE_DEVICES].split(",")
    assert len({first, *second}) == 3
    assert second[1].startswith("MIG-")
    with pytest.raises(NotEnoughDevices, match=r"requested 1 of nvidia\.com/gpu, 0 free"):
        devices.allocate("c", {"nvidia.com/gpu": 1})
    devices.release("a")
    assert devices.allocate("c", {"nvidia.com/gpu": 1})[VISIBLE_DEVICES] == first


def test_a_refused_allocation_takes_nothing() -> None:
    devices = Devices("gpu-0", {"nvidia.com/gpu": "2", "nvidia.com/mig-1g.10gb": "1"})
    with pytest.raises(NotEnoughDevices):
        devices.allocate("a", {"nvidia.com/gpu": 1, "nvidia.com/mig-1g.10gb": 2})
    assert len(devices.allocate("b", {"nvidia.com/gpu": 2})[VISIBLE_DEVICES].split(",")) == 2


def test_only_extended_resources_are_devices() -> None:
    limits = {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "1Gi", "nvidia.com/gpu": "2"}
    assert requested({"resources": {"limits": limits}}) == {"nvidia.com/gpu": 2}
    assert requested({}) == {}
    assert Devices("n", {}).allocate("a", {}) == {}
