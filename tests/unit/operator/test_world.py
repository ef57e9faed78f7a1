"""The cache: order of versions, late answers, ghosts, wake-ups."""

from typing import Any

import pytest
from tests.support.listing import relist

from duet_operator.cluster import FIELD_MANAGER
from duet_operator.world import Key, World

KEY = Key("default", "served")
OWNER = {"duetserve.io/name": KEY.name}


def body(kind: str, name: str, version: int, *, labels: dict[str, str] | None = None, **parts: Any) -> dict[str, Any]:
    metadata = {"namespace": KEY.namespace, "name": name, "resourceVersion": str(version), "uid": f"{kind}-{name}"}
    return {"kind": kind, "metadata": metadata | {"labels": OWNER if labels is None else labels}, **parts}


def duet(version: int, **parts: Any) -> dict[str, Any]:
    return body("DuetDeployment", KEY.name, version, labels={}, **parts)


def pod(name: str, version: int, *, ready: bool) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready)}]
    return body("Pod", name, version, spec={}, status={"conditions": conditions})


@pytest.fixture
def woken() -> list[Key]:
    return []


@pytest.fixture
def world(woken: list[Key]) -> World:
    return World(field_manager=FIELD_MANAGER, on_change=woken.append)


def test_an_older_version_changes_nothing(world: World, woken: list[Key]) -> None:
    world.put(pod("p", 9, ready=True))
    world.put(pod("p", 8, ready=False))
    assert [each.ready for each in world.pods(KEY)] == [True]
    assert woken == [KEY]


def test_what_was_ready_once_stays_known_for_it(world: World) -> None:
    world.put(pod("p", 1, ready=True))
    world.put(pod("p", 2, ready=False))
    assert [(each.ready, each.has_been_ready) for each in world.pods(KEY)] == [(False, True)]


def test_an_echo_of_our_own_status_wakes_nobody(world: World, woken: list[Key]) -> None:
    world.put(duet(1, spec={"a": 1}))
    world.put(duet(2, spec={"a": 1}, status={"ready": True}))
    assert woken == [KEY]
    assert (world.duet(KEY) or {})["status"] == {"ready": True}
    world.put(duet(3, spec={"a": 2}, status={"ready": True}))
    assert woken == [KEY, KEY]


def test_a_new_version_of_the_same_content_wakes_nobody(world: World, woken: list[Key]) -> None:
    world.put(body("Service", "s", 1, spec={"type": "ClusterIP"}))
    world.put(body("Service", "s", 2, spec={"type": "ClusterIP"}))
    assert woken == [KEY]


def test_a_late_answer_does_not_bring_a_deleted_object_back(world: World) -> None:
    world.put(pod("p", 5, ready=True))
    world.remove(pod("p", 7, ready=True))
    world.put(pod("p", 6, ready=True))
    assert world.pods(KEY) == ()
    world.put(pod("p", 8, ready=True))
    assert len(world.pods(KEY)) == 1


def test_a_late_deletion_does_not_take_the_successor_away(world: World) -> None:
    world.put(pod("p", 9, ready=True))
    world.remove(pod("p", 7, ready=True))
    assert len(world.pods(KEY)) == 1


def test_a_list_forgets_ghosts_but_not_what_is_newer(world: World, woken: list[Key]) -> None:
    world.put(pod("ghost", 3, ready=True))
    world.put(pod("newer", 12, ready=True))
    world.put(body("Service", "other-kind", 3))
    woken.clear()
    relist(world, "Pod", [pod("listed", 4, ready=True)], resource_version="10")
    assert {each.name for each in world.pods(KEY)} == {"newer", "listed"}
    assert world.child(KEY, "Service", "other-kind") is not None
    assert woken == [KEY, KEY]


def test_a_list_of_one_namespace_leaves_the_others(world: World) -> None:
    world.put(pod("p", 3, ready=True))
    relist(world, "Pod", [], resource_version="10", namespace="elsewhere")
    assert len(world.pods(KEY)) == 1
    relist(world, "Pod", [], resource_version="10", namespace=KEY.namespace)
    assert world.pods(KEY) == ()


def test_a_list_that_is_older_than_a_deletion_brings_nothing_back(world: World) -> None:
    world.remove(pod("p", 20, ready=True))
    relist(world, "Pod", [pod("p", 5, ready=True)], resource_version="10")
    assert world.pods(KEY) == ()


def test_a_child_that_changes_its_owner_moves(world: World) -> None:
    world.put(body("Service", "s", 1))
    world.put(body("Service", "s", 2, labels={"duetserve.io/name": "another"}))
    assert world.children(KEY) == ()
    assert len(world.children(Key(KEY.namespace, "another"))) == 1


def test_what_carries_no_label_is_not_ours(world: World, woken: list[Key]) -> None:
    world.put(body("Service", "s", 1, labels={}))
    assert woken == []
    assert world.counts() == {"duetdeployments": 0, "pods": 0, "children": 0}


def test_only_our_own_managed_fields_are_kept(world: World) -> None:
    service = body("Service", "s", 1)
    service["metadata"]["managedFields"] = [{"manager": FIELD_MANAGER}, {"manager": "kubectl"}]
    world.put(service)
    assert (world.child(KEY, "Service", "s") or {})["metadata"]["managedFields"] == [{"manager": FIELD_MANAGER}]


def test_objects_of_one_name_in_two_namespaces_are_two(world: World) -> None:
    elsewhere = duet(1)
    elsewhere["metadata"]["namespace"] = "elsewhere"
    world.put(duet(1))
    world.put(elsewhere)
    assert set(world.duets()) == {KEY, Key("elsewhere", KEY.name)}
    world.remove(duet(2))
    assert world.duets() == (Key("elsewhere", KEY.name),)
