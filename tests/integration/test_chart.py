"""The Helm chart: what it renders, on the real API server, and what its values may say."""

import json
import re
import subprocess
from dataclasses import fields
from typing import Any

import pytest
import yaml
from tests.support.manifests import deployment
from tests.support.operator_process import CHART, NAMESPACE, rendered

from duet_dev import build
from duet_dev.cluster import Cluster
from duet_engine.protocol import Role
from duet_operator.resources.children import plain_children
from duet_operator.resources.images import DEFAULT_ENGINE_IMAGE, DEFAULT_GATEWAY_IMAGE, DEFAULT_PULL_POLICY, resolve
from duet_operator.resources.pools import pool_deployment
from duet_operator.settings import PREFIX, Settings, from_environment

pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.skipif(bool(build.missing([build.HELM])), reason="helm not built: run `make binaries`"),
]


def kinds(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def environment(*options: str) -> dict[str, str]:
    """Variables of the operator's container that have a plain value."""
    deployment = kinds(rendered(*options), "Deployment")["duet-operator"]
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {variable["name"]: variable["value"] for variable in variables if "value" in variable}


def test_the_api_server_takes_everything_under_restricted_pod_security(apiserver: Cluster) -> None:
    apiserver.kubectl("create", "namespace", NAMESPACE, check=False)
    apiserver.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/warn=restricted", "--overwrite")
    options = (
        "--set=nodeSelector.kind=cpu",
        "--set=tolerations[0].key=x",
        "--set=podAnnotations.a=b",
        "--set=podLabels.c=d",
        "--set=extraEnv[0].name=HTTPS_PROXY,extraEnv[0].value=http://proxy",
        "--set=images.pullSecrets={pull}",
        "--set=priorityClassName=system-cluster-critical",
    )
    everything = {"apiVersion": "v1", "kind": "List", "items": rendered(*options)}
    done = apiserver.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(everything))
    assert "PodSecurity" not in done.stderr


def test_the_operator_s_pod_is_let_in_where_restricted_is_enforced(apiserver: Cluster, namespace: str) -> None:
    apiserver.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    template = kinds(rendered(), "Deployment")["duet-operator"]["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": template["spec"]}
    apiserver.kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", input=json.dumps(pod))


def test_no_role_may_read_secrets_or_write_specs() -> None:
    rules = [rule for role in kinds(rendered(), "ClusterRole").values() for rule in role["rules"]]
    assert not [rule for rule in rules if {"secrets", "*"} & set(rule["resources"])]
    assert not [rule for rule in rules if "*" in rule["verbs"] or "*" in rule["apiGroups"]]
    own = [
        rule["verbs"]
        for rule in kinds(rendered(), "ClusterRole")["duet-operator"]["rules"]
        if "duetdeployments" in rule["resources"]
    ]
    assert own == [["list", "watch"]]


def test_nothing_holds_up_the_drain_of_the_operator_s_node() -> None:
    """A disruption budget on its one replica would, for ever."""
    documents = rendered()
    assert kinds(documents, "Deployment")["duet-operator"]["spec"]["replicas"] == 1
    assert kinds(documents, "PodDisruptionBudget") == {}


def test_a_list_of_namespaces_gives_no_cluster_wide_right() -> None:
    documents = rendered("--set=watchNamespaces={a,b}")
    assert kinds(documents, "ClusterRoleBinding") == {}
    assert not [name for name in kinds(documents, "ClusterRole") if name == "duet-operator-nodes"]
    bound = [each["metadata"]["namespace"] for each in documents if each["kind"] == "RoleBinding"]
    assert sorted(bound) == ["a", "b", NAMESPACE]
    assert from_environment(environment("--set=watchNamespaces={a,b}")).namespaces == ("a", "b")


def test_every_setting_has_a_value_of_its_name() -> None:
    names = [field.name for field in fields(Settings) if isinstance(field.default, float)]
    values = {name: f"{index}.5" for index, name in enumerate(names, start=1)}

    def camel(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(part.capitalize() for part in rest)

    found = environment(*(f"--set=settings.{camel(name)}={value}" for name, value in values.items()))
    assert {name: found[PREFIX + name.upper()] for name in names} == values


def test_images_are_the_builders_defaults_and_can_all_be_moved() -> None:
    default = environment()
    assert default["DUET_OPERATOR_ENGINE_IMAGE"] == DEFAULT_ENGINE_IMAGE
    assert default["DUET_OPERATOR_GATEWAY_IMAGE"] == DEFAULT_GATEWAY_IMAGE
    assert default["DUET_OPERATOR_IMAGE_PULL_POLICY"] == DEFAULT_PULL_POLICY
    moved = rendered("--set=images.operator=r/o:2,images.engine=r/e@sha256:1,images.gateway=r/g:1")
    container = kinds(moved, "Deployment")["duet-operator"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "r/o:2"
    assert {"r/e@sha256:1", "r/g:1"} <= {variable.get("value") for variable in container["env"]}


PRIVATE = "registry.internal:5000/duet"
REFERENCE = re.compile(r"[\w.-]+(?::\d+)?(?:/[\w.-]+)+(?:@sha256:\w+|:[\w.-]+)")
"""An image reference: a path with a tag or a digest."""


def test_with_a_registry_of_ones_own_no_other_is_named_anywhere() -> None:
    """What the chart makes, and what the operator makes of an object with the settings that it gets from the chart."""
    options = (f"--set=images.registry={PRIVATE},images.pullSecrets={{pull,other}}", "--include-crds")
    documents = rendered(*options)
    operator = kinds(documents, "Deployment")["duet-operator"]["spec"]["template"]["spec"]
    settings = from_environment(environment(*options))
    images = resolve(
        deployment(),
        engine_image=settings.engine_image,
        gateway_image=settings.gateway_image,
        pull_secrets=settings.image_pull_secrets,
        pull_policy=settings.image_pull_policy,
    )
    made = [
        *plain_children(deployment(), images),
        *(pool_deployment(deployment(), role, images) for role in (Role.PREFILL, Role.DECODE)),
    ]
    named = REFERENCE.findall(yaml.safe_dump_all([*documents, *made]))
    names = sorted({name.removeprefix(PRIVATE + "/").partition(":")[0] for name in named})
    assert names == ["duet-engine", "duet-gateway", "duet-operator"]
    pods = [operator, *(each["spec"]["template"]["spec"] for each in made if each["kind"] == "Deployment")]
    assert [pod["imagePullSecrets"] for pod in pods] == [[{"name": "pull"}, {"name": "other"}]] * 4


@pytest.mark.parametrize(
    "bad",
    [
        "foo=1",
        "replicas=-1",
        "watchNamespaces={A}",
        "images.registry=r/",
        "images.pullPolicy=Sometimes",
        "images.pullSecrets={A}",
        "image.tag=1",
        "settings.Bad-Name=1",
    ],
)
def test_a_value_that_means_nothing_is_refused(bad: str) -> None:
    command = [str(build.binary_path(build.HELM)), "template", str(CHART), f"--set={bad}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "values don't meet the specifications of the schema" in result.stderr
