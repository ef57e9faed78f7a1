"""The objects of a DuetDeployment. The golden files are rewritten with DUET_WRITE_GOLDEN=1."""

import copy
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.manifests import FULL, UID, deployment, everything

from duet_engine.protocol import Role
from duet_operator.api.v1alpha1 import DuetDeployment, ResolvedStatus
from duet_operator.resources.children import plain_children
from duet_operator.resources.config_maps import history_config_map, read_memory_document
from duet_operator.resources.gateway import CLUSTER_ROLE, gateway_deployment, gateway_manifests
from duet_operator.resources.images import DEFAULT_ENGINE_IMAGE, DEFAULT_GATEWAY_IMAGE, Images, resolve
from duet_operator.resources.labels import REVISION
from duet_operator.resources.names import gateway_name, history_name, live_name, pool_name
from duet_operator.resources.pools import pool_creation, pool_deployment, revision
from duet_operator.resources.strategic_merge import InvalidTemplateError

GOLDEN = Path(__file__).parent / "golden"
IMAGES = Images(engine="engine:1", gateway="gateway:1")


def engine(manifest: dict[str, Any]) -> Any:
    return manifest["spec"]["template"]["spec"]["containers"][0]


def pool(duet: DuetDeployment, role: Role = Role.DECODE) -> dict[str, Any]:
    return pool_deployment(duet, role, resolve(duet))


def template(duet: DuetDeployment, role: Role = Role.DECODE) -> Any:
    return pool(duet, role)["spec"]["template"]


@pytest.mark.parametrize("duet", [deployment(), FULL], ids=["smallest", "full"])
def test_manifests_are_the_golden_ones(duet: DuetDeployment) -> None:
    path = GOLDEN / f"{duet.metadata.name}.yaml"
    text = yaml.safe_dump(everything(duet), sort_keys=True, width=120)
    if os.environ.get("DUET_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_same_object_same_bytes() -> None:
    assert json.dumps(everything(FULL)) == json.dumps(everything(FULL.model_copy(deep=True)))


def test_no_two_places_of_a_manifest_are_the_same_object() -> None:
    """Whoever changes one place of a manifest mustn't change another."""

    def containers(value: object) -> Iterator[int]:
        if isinstance(value, dict | list):
            yield id(value)
            for part in value.values() if isinstance(value, dict) else value:
                yield from containers(part)

    for manifest in everything(deployment()).values():
        identities = list(containers(manifest))
        assert len(identities) == len(set(identities))


# --- ownership ---


def test_everything_is_owned_and_labelled() -> None:
    for manifest in everything(FULL).values():
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "models"
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "duetserve.io/v1alpha1",
                "kind": "DuetDeployment",
                "name": "full",
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
        assert (
            metadata["labels"].items()
            >= {
                "app.kubernetes.io/name": "duet",
                "app.kubernetes.io/instance": "full",
                "app.kubernetes.io/managed-by": "duet-operator",
                "duetserve.io/name": "full",
            }.items()
        )


def test_replicas_stand_only_in_the_creation() -> None:
    duet = deployment()
    for role in (Role.PREFILL, Role.DECODE):
        applied = pool_deployment(duet, role, IMAGES)
        created = pool_creation(duet, role, IMAGES, replicas=4)
        assert "replicas" not in applied["spec"]
        assert created["spec"].pop("replicas") == 4
        assert created == applied


# --- what rolls pods ---


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.slo.itlMilliseconds": 20},
        {"spec.slo.ttftMilliseconds": 100},
        {"spec.pools.decode": {"minReplicas": 2, "maxReplicas": 4}},
        {"spec.deflection.mode": "Off", "spec.pools.prefill.minReplicas": 1},
        {"spec.scaling": {"intervalSeconds": 2, "pendingDeadlineSeconds": 60}},
        {"spec.drain.onTimeout": "Terminate"},
        {"spec.gateway.replicas": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_live_fields_roll_nothing(changes: dict[str, Any]) -> None:
    for role in (Role.PREFILL, Role.DECODE):
        assert template(deployment(changes), role) == template(deployment(), role)


@pytest.mark.parametrize(
    ("changes", "renews"),
    [
        pytest.param({"spec.model.id": "other"}, True, id="model"),
        pytest.param({"spec.model.contextLength": 100}, True, id="context"),
        pytest.param({"spec.engine.image": "x"}, True, id="image"),
        pytest.param({"spec.engine.args": ["--x"]}, True, id="arguments"),
        pytest.param({"spec.engine.env": [{"name": "X"}]}, True, id="environment"),
        pytest.param({"spec.engine.transferBackend": "nixl"}, True, id="transfer"),
        pytest.param({"spec.engine.template": {"metadata": {"annotations": {"a": "b"}}}}, True, id="template"),
        pytest.param({"spec.drain.timeoutSeconds": 30}, False, id="drain"),
        pytest.param({"spec.pools.decode.gpu": {"resourceName": "x.y/z"}}, False, id="GPU"),
        pytest.param({"spec.pools.decode.template": {"spec": {"hostNetwork": True}}}, False, id="pool template"),
    ],
)
def test_fields_that_roll_pods_and_those_that_part_revisions(changes: dict[str, Any], renews: bool) -> None:
    """A pool may roll alone; only what both pools' engines share makes a new revision."""
    before, after = deployment(), deployment(changes)
    assert template(after) != template(before)
    assert (revision(after, resolve(after)) != revision(before, resolve(before))) == renews


def test_both_pools_carry_one_revision() -> None:
    labels = [template(FULL, role)["metadata"]["labels"][REVISION] for role in (Role.PREFILL, Role.DECODE)]
    assert labels[0] == labels[1] == revision(FULL, resolve(FULL))


# --- engine pods ---


def test_contract_with_the_engine() -> None:
    container = engine(pool(FULL, Role.PREFILL))
    plain = {item["name"]: item.get("value") for item in container["env"]}
    assert (
        plain.items()
        >= {
            "DUET_ROLE": "prefill",
            "DUET_MODEL_ID": "Qwen/Qwen3-8B",
            "DUET_SERVED_NAME": "qwen",
            "DUET_CONTEXT_LENGTH": "32768",
            "DUET_TENSOR_PARALLEL_SIZE": "1",
            "DUET_TRANSFER_BACKEND": "mooncake_tcp",
            "DUET_DRAIN_TIMEOUT_SECONDS": "120",
            "DUET_REVISION": revision(FULL, resolve(FULL)),
            "EMPTY": "",
            "EXTRA": "p",
        }.items()
    )
    assert {"POD_NAME", "POD_IP", "POD_NAMESPACE", "DUET_ITL_MILLISECONDS"} <= plain.keys()
    assert len(plain) == len(container["env"])
    assert container["args"] == ["--mem-fraction-static", "0.85"]
    assert "command" not in container
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": 30000, "bootstrap": 8998}
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["duet-engine", "drain"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/duet/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/duet/live"
    assert container["startupProbe"]["httpGet"]["path"] == "/duet/live"
    assert "/health" not in str(container), (
        "SGLang's takes a second, and fails on decode workers when a prefill worker dies"
    )


def test_itl_comes_from_a_config_map_so_that_its_change_rolls_nothing() -> None:
    duet = deployment({"spec.slo.itlMilliseconds": 35})
    (variable,) = [item for item in engine(pool(duet))["env"] if item["name"] == "DUET_ITL_MILLISECONDS"]
    reference = variable["valueFrom"]["configMapKeyRef"]
    (live,) = [child for child in plain_children(duet, IMAGES) if child["metadata"]["name"] == reference["name"]]
    assert live["data"][reference["key"]] == "35"


@pytest.mark.parametrize(
    ("role", "resource", "count"), [("prefill", "nvidia.com/mig-3g.40gb", "1"), ("decode", "nvidia.com/gpu", "2")]
)
def test_gpus_of_a_replica(role: str, resource: str, count: str) -> None:
    assert engine(pool(FULL, Role(role)))["resources"]["limits"] == {resource: count}


def test_grace_outlasts_the_drain() -> None:
    assert template(FULL)["spec"]["terminationGracePeriodSeconds"] == 120 + 45


def test_rollout_takes_no_extra_gpus() -> None:
    assert pool(deployment())["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_templates_patch_and_the_pools_own_comes_last() -> None:
    duet = deployment(
        {
            "spec.engine.template": {"metadata": {"labels": {"tier": "all"}}, "spec": {"priorityClassName": "low"}},
            "spec.pools.decode.template": {"spec": {"priorityClassName": "high"}},
        }
    )
    assert template(duet, Role.PREFILL)["spec"]["priorityClassName"] == "low"
    assert template(duet, Role.DECODE)["spec"]["priorityClassName"] == "high"
    assert template(duet)["metadata"]["labels"]["tier"] == "all"


def test_templates_cannot_take_pods_away_from_their_pool() -> None:
    labels = {"duetserve.io/role": "prefill", "duetserve.io/name": "other", REVISION: "x"}
    duet = deployment({"spec.engine.template": {"metadata": {"labels": labels}}})
    assert template(duet)["metadata"]["labels"].items() >= pool(duet)["spec"]["selector"]["matchLabels"].items()
    assert template(duet)["metadata"]["labels"][REVISION] == revision(duet, resolve(duet))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param(
            {"spec.engine.template": {"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}}},
            "spec.engine.template removes the container 'engine'",
            id="engine removed",
        ),
        pytest.param(
            {"spec.pools.decode.template": {"spec": {"containers": "none"}}},
            "spec.pools.decode.template.spec.containers must be a list",
            id="pool's template",
        ),
        pytest.param(
            {"spec.pools.decode.template": {"spec": {"$patch": "delete"}}},
            "spec.pools.decode.template removes the container 'engine'",
            id="no spec left",
        ),
    ],
)
def test_bad_template_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTemplateError) as refused:
        pool(deployment(changes))
    assert told in str(refused.value)


# --- images ---


def test_images_come_from_spec_then_pinned_then_settings_then_default() -> None:
    plain, named = deployment(), deployment({"spec.engine.image": "spec"})
    pinned = ResolvedStatus(engine_image="pinned", gateway_image="pinned-gateway")
    assert resolve(plain).engine == DEFAULT_ENGINE_IMAGE
    assert resolve(plain, engine_image="set", gateway_image="set-gateway") == Images(
        engine="set", gateway="set-gateway"
    )
    assert resolve(plain, pinned, engine_image="set") == Images(engine="pinned", gateway="pinned-gateway")
    assert resolve(named, pinned, engine_image="set").engine == "spec"


@pytest.mark.parametrize("build", [lambda duet, images: pool_deployment(duet, Role.DECODE, images), gateway_deployment])
def test_engines_and_gateways_are_pulled_with_the_operators_secrets(build: Any) -> None:
    private = Images(engine="e", gateway="g", pull_secrets=("one", "two"), pull_policy="Always")
    template = build(deployment(), private)["spec"]["template"]["spec"]
    assert template["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert template["containers"][0]["imagePullPolicy"] == "Always"
    assert "imagePullSecrets" not in build(deployment(), IMAGES)["spec"]["template"]["spec"]


def test_default_images_are_those_of_this_version() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (sglang,) = [each for each in project["optional-dependencies"]["engine"] if each.startswith("sglang==")]
    engine_tag = f"{sglang.removeprefix('sglang==')}-duet{project['version']}"
    assert DEFAULT_ENGINE_IMAGE.rpartition(":")[2] == engine_tag
    assert DEFAULT_GATEWAY_IMAGE.rpartition(":")[2] == project["version"]


# --- gateway ---


def test_gateway_is_reached_by_the_objects_name() -> None:
    manifests = {manifest["kind"]: manifest for manifest in gateway_manifests(FULL, IMAGES)}
    service = manifests["Service"]
    assert service["metadata"]["name"] == "full"
    assert service["metadata"]["annotations"] == {"example.com/internal": "true"}
    (port,) = service["spec"]["ports"]
    pod = manifests["Deployment"]["spec"]["template"]
    (named,) = [each for each in pod["spec"]["containers"][0]["ports"] if each["name"] == port["targetPort"]]
    assert (port["port"], named["containerPort"]) == (80, 8000)
    assert pod["metadata"]["labels"].items() >= service["spec"]["selector"].items()


def test_gateway_may_do_what_one_cluster_role_says() -> None:
    manifests = {manifest["kind"]: manifest for manifest in gateway_manifests(FULL, IMAGES)}
    binding, account = manifests["RoleBinding"], manifests["ServiceAccount"]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": CLUSTER_ROLE,
    }
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "models"}
    ]
    assert manifests["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_gateway_knows_its_object() -> None:
    manifests = {manifest["kind"]: manifest for manifest in gateway_manifests(FULL, IMAGES)}
    assert engine(manifests["Deployment"])["args"] == ["--namespace", "models", "--name", "full"]
    assert manifests["Deployment"]["spec"]["replicas"] == 3


def test_gateway_reads_keys_and_certificate_from_secrets_that_the_operator_never_sees() -> None:
    secrets = {"spec.gateway.tls": {"secretName": "cert"}, "spec.gateway.apiKeys": {"secretName": "keys"}}
    manifests = {manifest["kind"]: manifest for manifest in gateway_manifests(deployment(secrets), IMAGES)}
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    container, volumes = pod["containers"][0], {each["name"]: each for each in pod["volumes"]}
    assert (volumes["tls"]["secret"], volumes["api-keys"]["secret"]) == ({"secretName": "cert"}, {"secretName": "keys"})
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"] if mount["readOnly"]}
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert options["--tls-folder"] == folders["tls"] and options["--api-keys-folder"] == folders["api-keys"]
    (port,) = manifests["Service"]["spec"]["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("https", 443, "http")


def test_no_gateway_where_it_is_disabled() -> None:
    duet = deployment({"spec.gateway.enabled": False, "spec.pools.prefill.minReplicas": 1})
    assert gateway_manifests(duet, IMAGES) == ()
    assert [child["kind"] for child in plain_children(duet, IMAGES)] == ["ConfigMap"]


# --- names ---


@pytest.mark.parametrize("make", [gateway_name, history_name, live_name, lambda name: pool_name(name, Role.PREFILL)])
def test_long_names_are_cut_and_stay_apart(make: Any) -> None:
    names = ["a" * length for length in (10, 48, 60, 63, 64, 100, 253)] + ["a" * 99 + "b"]
    made = [make(name) for name in names]
    assert all(len(each) <= 63 for each in made)
    assert len(set(made)) == len(names)
    assert make("short").startswith("short-")


def test_cut_never_ends_with_a_dash() -> None:
    assert "--" not in history_name("a" * 41 + "-" * 20 + "z" * 5)


def test_labels_of_long_names_fit() -> None:
    manifest = everything(deployment(name="n" * 70))
    for each in manifest.values():
        assert all(len(value) <= 63 for value in each["metadata"]["labels"].values())


# --- memory ---


def test_memory_is_read_back() -> None:
    document = {"planner": {"samples": [[1.5, 2]]}}
    assert read_memory_document(history_config_map(deployment(), document)) == document


@pytest.mark.parametrize(
    "config_map", [None, {}, {"data": None}, {"data": {"memory.json": "{"}}, {"data": {"x": "{}"}}]
)
def test_unreadable_memory_is_none(config_map: Any) -> None:
    assert read_memory_document(copy.deepcopy(config_map)) is None
