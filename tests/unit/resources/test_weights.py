"""What an engine's pod gets from `spec.model.source`."""

from typing import Any

import pytest
from tests.support.manifests import deployment

from duet_engine.protocol import Role
from duet_operator.api.model import RESERVED_ENVIRONMENT
from duet_operator.api.v1alpha1 import DuetDeployment
from duet_operator.resources.images import resolve
from duet_operator.resources.pools import pool_deployment, revision

CLAIM = {"persistentVolumeClaim": {"claimName": "weights"}}
IMAGE = {"image": {"reference": "registry.example/qwen3:1"}}
HUB = {"huggingFace": {"tokenSecretRef": {"name": "hub"}}}
SHARED = {"huggingFace": {"cacheClaimName": "hub-cache"}}


def sourced(source: dict[str, Any] | None = None, **model: Any) -> DuetDeployment:
    return deployment({"spec.model": {"id": "Qwen/Qwen3-8B", **model} | ({"source": source} if source else {})})


def pod(duet: DuetDeployment, role: Role = Role.DECODE) -> Any:
    return pool_deployment(duet, role, resolve(duet))["spec"]["template"]["spec"]


def variables(duet: DuetDeployment) -> dict[str, Any]:
    container = pod(duet)["containers"][0]
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def mounted(duet: DuetDeployment) -> list[tuple[str, dict[str, Any], bool]]:
    """Where each volume of the model is in the container, what it is, and whether it's read-only."""
    volumes = {volume["name"]: volume for volume in pod(duet)["volumes"]}
    return [
        (mount["mountPath"], volumes[mount["name"]], mount.get("readOnly", False))
        for mount in pod(duet)["containers"][0]["volumeMounts"]
        if mount["name"].startswith("model")
    ]


# --- the hub ---


@pytest.mark.parametrize("source", [None, {"huggingFace": {}}], ids=["none", "hub"])
def test_without_a_source_each_pod_downloads_into_its_own_cache(source: dict[str, Any] | None) -> None:
    duet = sourced(source)
    assert variables(duet).items() >= {"DUET_MODEL_PATH": "Qwen/Qwen3-8B", "HF_HOME": "/var/cache/huggingface"}.items()
    assert not {"HF_TOKEN", "HF_HUB_OFFLINE", "DUET_MODEL_REVISION"} & variables(duet).keys()
    assert mounted(duet) == [("/var/cache/huggingface", {"name": "model-cache", "emptyDir": {}}, False)]


def test_a_token_comes_from_its_secret_without_the_operator() -> None:
    duet = sourced(HUB | {"huggingFace": {"tokenSecretRef": {"name": "hub", "key": "hf"}}})
    assert variables(duet)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "hf"}}
    assert variables(sourced(HUB))["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


def test_a_cache_may_be_shared_by_all_pods() -> None:
    ((path, volume, read_only),) = mounted(sourced(SHARED))
    assert path == variables(sourced(SHARED))["HF_HOME"]
    assert volume == {"name": "model-cache", "persistentVolumeClaim": {"claimName": "hub-cache"}}
    assert not read_only


def test_a_revision_is_the_engines_to_load() -> None:
    assert variables(sourced(revision="v1.1"))["DUET_MODEL_REVISION"] == "v1.1"


# --- weights that are there already ---


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        (CLAIM, {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}),
        (IMAGE, {"image": {"reference": "registry.example/qwen3:1", "pullPolicy": "IfNotPresent"}}),
    ],
    ids=["claim", "image"],
)
def test_weights_that_are_mounted_are_read_only_and_offline(source: Any, volume: dict[str, Any]) -> None:
    duet = sourced(source)
    assert mounted(duet) == [("/models", {"name": "model"} | volume, True)]
    assert variables(duet).items() >= {"DUET_MODEL_PATH": "/models", "HF_HUB_OFFLINE": "1"}.items()
    assert not {"HF_HOME", "HF_TOKEN"} & variables(duet).keys()


@pytest.mark.parametrize("kind", [CLAIM, IMAGE], ids=["claim", "image"])
@pytest.mark.parametrize(("path", "loaded"), [("a/b", "/models/a/b"), ("./a//b/", "/models/a/b"), (".", "/models")])
def test_weights_may_lie_deeper(kind: dict[str, Any], path: str, loaded: str) -> None:
    duet = sourced({name: given | {"path": path} for name, given in kind.items()})
    assert variables(duet)["DUET_MODEL_PATH"] == loaded
    # All of it is mounted: a snapshot in a hub's cache links to files beside it.
    assert [path for path, *_ in mounted(duet)] == ["/models"]


def test_weights_in_the_engines_image_need_no_volume() -> None:
    duet = sourced(id="/opt/qwen3")
    assert variables(duet).items() >= {"DUET_MODEL_PATH": "/opt/qwen3", "HF_HUB_OFFLINE": "1"}.items()
    assert mounted(duet) == []


# --- both pools, and changes ---


@pytest.mark.parametrize("source", [None, HUB, SHARED, CLAIM, IMAGE], ids=str)
def test_no_variable_is_set_twice_and_users_may_not_set_the_operators(source: Any) -> None:
    for model in (sourced(source), sourced(id="/opt/qwen3")):
        names = [variable["name"] for variable in pod(model)["containers"][0]["env"]]
        assert len(names) == len(set(names))
        assert set(names) <= set(RESERVED_ENVIRONMENT)


@pytest.mark.parametrize("source", [None, HUB, SHARED, CLAIM, IMAGE], ids=str)
def test_both_pools_load_the_same(source: Any) -> None:
    duet = sourced(source)
    prefill, decode = pod(duet, Role.PREFILL), pod(duet, Role.DECODE)
    assert prefill["volumes"] == decode["volumes"]
    assert prefill["containers"][0]["volumeMounts"] == decode["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    "changed",
    [
        sourced(servedName="qwen"),
        sourced(revision="v1.1"),
        sourced(HUB),
        sourced(SHARED),
        sourced(CLAIM),
        sourced(CLAIM | {"persistentVolumeClaim": {"claimName": "weights", "path": "a"}}),
        sourced(IMAGE),
    ],
    ids=["name", "revision", "token", "cache", "claim", "directory", "image"],
)
def test_a_change_rolls_pods_and_makes_a_revision(changed: DuetDeployment) -> None:
    """Workers with unequal weights mustn't hand over KV caches to each other."""
    before = sourced()
    assert pod(changed) != pod(before)
    assert revision(changed, resolve(changed)) != revision(before, resolve(before))
