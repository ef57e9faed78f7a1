"""The Helm chart: what it renders, on the real API server, and what its values may say."""

import json
import subprocess
from dataclasses import fields
from typing import Any

import pytest
from tests.support.operator_process import CHART, NAMESPACE, rendered

from duet_dev import build
from duet_dev.cluster import Cluster
from duet_operator.resources.images import DEFAULT_ENGINE_IMAGE, DEFAULT_GATEWAY_IMAGE
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
        "--set=imagePullSecrets[0].name=pull",
        "--set=priorityClassName=system-cluster-critical",
    )
    everything = {"apiVersion": "v1", "kind": "List", "items": rendered(*options)}
    done = apiserver.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(everything))
    assert "PodSecurity" not in done.stderr


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


def test_a_list_of_namespaces_gives_no_cluster_wide_right() -> None:
    documents = rendered("--set=watchNamespaces={a,b}")
    assert kinds(documents, "ClusterRoleBinding") == {}
    bound = [each["metadata"]["namespace"] for each in documents if each["kind"] == "RoleBinding"]
    assert sorted(bound) == ["a", "b", NAMESPACE]
    assert from_environment(environment("--set=watchNamespaces={a,b}")).namespaces == ("a", "b")


def test_every_setting_has_a_value_of_its_name() -> None:
    for field in fields(Settings):
        if isinstance(field.default, float):
            first, *rest = field.name.split("_")
            camel = first + "".join(part.capitalize() for part in rest)
            assert environment(f"--set=settings.{camel}=7.5")[PREFIX + field.name.upper()] == "7.5"


def test_images_are_the_builders_defaults_and_can_all_be_moved() -> None:
    default = environment()
    assert default["DUET_OPERATOR_ENGINE_IMAGE"] == DEFAULT_ENGINE_IMAGE
    assert default["DUET_OPERATOR_GATEWAY_IMAGE"] == DEFAULT_GATEWAY_IMAGE
    moved = rendered("--set=image.repository=r/o,engine.image=r/e:1,gateway.image=r/g:1", "--set-string=image.tag=2")
    container = kinds(moved, "Deployment")["duet-operator"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "r/o:2"
    assert {"r/e:1", "r/g:1"} <= {variable.get("value") for variable in container["env"]}


@pytest.mark.parametrize(
    "bad", ["foo=1", "replicas=-1", "watchNamespaces={A}", "image.digest=abc", "settings.Bad-Name=1", "engine.image="]
)
def test_a_value_that_means_nothing_is_refused(bad: str) -> None:
    command = [str(build.binary_path(build.HELM)), "template", str(CHART), f"--set={bad}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "values don't meet the specifications of the schema" in result.stderr
