"""Merging a user's patch into a pod template."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_operator.resources.strategic_merge import MERGE_KEYS, InvalidTemplateError, merge

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "image": "one",
                "args": ["--a", "--b"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP"}],
                "volumeMounts": [{"name": "shared", "mountPath": "/dev/shm"}],
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
            }
        ],
        "volumes": [{"name": "shared", "emptyDir": {"medium": "Memory"}}],
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    },
}


def engine(**changes: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "engine", **changes}]}}


def merged(patch: dict[str, Any]) -> dict[str, Any]:
    return merge(TEMPLATE, patch, path="spec.engine.template")


def container(patch: dict[str, Any]) -> Any:
    return merged(patch)["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("patch", "field", "expected"),
    [
        pytest.param(engine(image="two"), "image", "two", id="a value is replaced"),
        pytest.param(engine(image=None), "image", None, id="null removes a field"),
        pytest.param(engine(args=["--c"]), "args", ["--c"], id="arguments are replaced as a whole"),
        pytest.param(
            engine(env=[{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]),
            "env",
            [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
            id="variables merge by name",
        ),
        pytest.param(
            engine(env=[{"name": "A", "$patch": "delete"}]),
            "env",
            [{"name": "B", "value": "2"}],
            id="an item is deleted",
        ),
        pytest.param(
            engine(env=[{"name": "C", "value": "4"}, {"$patch": "replace"}]),
            "env",
            [{"name": "C", "value": "4"}],
            id="a list is replaced",
        ),
        pytest.param(
            engine(env=[{"name": "A", "value": None, "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]),
            "env",
            [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}, {"name": "B", "value": "2"}],
            id="a variable of another kind",
        ),
        pytest.param(
            engine(ports=[{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]),
            "ports",
            [{"containerPort": 80, "name": "http", "protocol": "TCP", "hostPort": 8080}, {"containerPort": 81}],
            id="ports merge by number",
        ),
        pytest.param(
            engine(volumeMounts=[{"name": "cache", "mountPath": "/cache"}]),
            "volumeMounts",
            [{"name": "shared", "mountPath": "/dev/shm"}, {"name": "cache", "mountPath": "/cache"}],
            id="mounts merge by path",
        ),
        pytest.param(
            engine(resources={"requests": {"cpu": "4"}}),
            "resources",
            {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "4"}},
            id="maps merge by key",
        ),
        pytest.param(
            engine(resources={"$patch": "replace", "limits": {"x": "1"}}),
            "resources",
            {"limits": {"x": "1"}},
            id="a map is replaced",
        ),
        pytest.param(engine(resources={"$patch": "delete"}), "resources", None, id="a map is deleted"),
        pytest.param(
            engine(securityContext={"capabilities": {"add": ["IPC_LOCK"], "drop": None}}),
            "securityContext",
            {"capabilities": {"add": ["IPC_LOCK"]}},
            id="a new map is taken without its nulls",
        ),
    ],
)
def test_container_field(patch: dict[str, Any], field: str, expected: Any) -> None:
    assert container(patch).get(field) == expected


@pytest.mark.parametrize(
    ("patch", "field", "expected"),
    [
        pytest.param({"tolerations": [{"key": "b"}]}, "tolerations", [{"key": "b"}], id="tolerations are one value"),
        pytest.param(
            {"volumes": [{"name": "shared", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]},
            "volumes",
            [{"name": "shared", "hostPath": {"path": "/x"}}],
            id="a volume changes its kind by retainKeys",
        ),
        pytest.param(
            {"volumes": [{"name": "cache", "emptyDir": {}}]},
            "volumes",
            [{"name": "shared", "emptyDir": {"medium": "Memory"}}, {"name": "cache", "emptyDir": {}}],
            id="an empty map stays",
        ),
        pytest.param(
            {"initContainers": [{"name": "fetch", "image": "x"}]},
            "initContainers",
            [{"name": "fetch", "image": "x"}],
            id="a new list",
        ),
        pytest.param({"nodeSelector": {"env": "prod"}}, "nodeSelector", {"env": "prod"}, id="a key like a list's name"),
    ],
)
def test_pod_field(patch: dict[str, Any], field: str, expected: Any) -> None:
    assert merged({"spec": patch})["spec"][field] == expected


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        pytest.param({"spec": []}, "spec.engine.template.spec must be an object, found a list", id="shape"),
        pytest.param({"spec": {"containers": {}}}, "spec.containers must be a list, found an object", id="list"),
        pytest.param({"spec": {"containers": ["x"]}}, "spec.containers[0] must be an object", id="item"),
        pytest.param({"spec": {"containers": [{"image": "x"}]}}, "containers[0].name is missing", id="key"),
        pytest.param(engine(**{"$patch": "drop"}), "$patch is 'drop': it must be merge, replace or delete", id="verb"),
        pytest.param(engine(**{"$setElementOrder/env": []}), "isn't supported; use $patch or $retainKeys", id="order"),
        pytest.param(
            engine(env=[{"name": "A", "$patch": "replace"}]),
            "env[0].$patch would replace the whole list; put it in an item of its own",
            id="replace with more",
        ),
        pytest.param(engine(**{"$retainKeys": "name"}), "$retainKeys must be a list", id="retainKeys"),
    ],
)
def test_bad_patch_is_refused_by_name(patch: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTemplateError) as refused:
        merged(patch)
    assert told in str(refused.value)


# --- properties ---

NAMES = st.sampled_from(["a", "b", "c", "d"])
SCALARS = st.text(max_size=3) | st.integers() | st.booleans()


def documents(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Templates with each kind of field: maps, lists by key, whole lists, plain values."""
    plain = st.dictionaries(st.sampled_from(["image", "command1", "size"]), values, max_size=3)

    def keyed(key: str, inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
        items = st.builds(lambda name, rest: {key: name, **rest}, NAMES, inner)
        return st.lists(items, max_size=3, unique_by=lambda item: item[key])

    variables = keyed("name", plain)
    containers = keyed("name", st.fixed_dictionaries({}, optional={"env": variables, "args": st.lists(SCALARS)}))
    return st.fixed_dictionaries(
        {},
        optional={
            "containers": containers,
            "volumes": keyed("name", plain),
            "ports": keyed("containerPort", plain),
            "tolerations": st.lists(plain, max_size=2),
            "labels": plain,
        },
    )


TEMPLATES = documents(SCALARS)
PATCHES = documents(SCALARS | st.none())


@given(TEMPLATES)
def test_empty_patch_changes_nothing(template: dict[str, Any]) -> None:
    assert merge(template, {}, path="t") == template


@given(TEMPLATES, PATCHES)
def test_inputs_stay_as_they_are(template: dict[str, Any], patch: dict[str, Any]) -> None:
    before = copy.deepcopy((template, patch))
    result = merge(template, patch, path="t")
    for value in result.values():
        if isinstance(value, list):
            value.append("changed")
    assert (template, patch) == before


@given(TEMPLATES, PATCHES)
def test_merging_twice_is_merging_once(template: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge(template, patch, path="t")
    assert merge(once, patch, path="t") == once


@given(TEMPLATES)
def test_template_merged_into_nothing_is_itself(template: dict[str, Any]) -> None:
    assert merge({}, template, path="t") == template


@given(TEMPLATES, PATCHES)
def test_items_that_a_patch_does_not_name_stay(template: dict[str, Any], patch: dict[str, Any]) -> None:
    result = merge(template, patch, path="t")
    for field, items in template.items():
        if field in MERGE_KEYS:
            key = MERGE_KEYS[field]
            named = {item[key] for item in patch.get(field) or []}
            after = {item[key]: item for item in result.get(field, [])}
            for item in items:
                assert item[key] in named or after[item[key]] == item
