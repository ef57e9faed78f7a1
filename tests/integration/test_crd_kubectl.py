"""The API as people meet it through kubectl: examples, columns, explanations, ownership of list items."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.crd_server import CrdServer
from tests.support.duet_objects import minimal, patched
from tests.support.operator_process import until

from duet_dev.cluster import Cluster
from duet_dev.errors import DevError
from duet_operator.api.crd import custom_resource_definition, to_yaml
from duet_operator.api.v1alpha1 import Condition, DuetStatus, PoolStatus, SloStatus, SummaryStatus, parse

pytestmark = pytest.mark.apiserver

EXAMPLES = {
    f"{path.name}:{document['metadata']['name']}": document
    for path in (Path(__file__).parents[2] / "examples").glob("**/*.yaml")
    for document in yaml.safe_load_all(path.read_text())
    if isinstance(document, dict) and document.get("kind") == "DuetDeployment"
}


def kubectl(cluster: Cluster, *arguments: str, given: Any = None) -> str:
    text = given if isinstance(given, str) or given is None else json.dumps(given)
    return cluster.kubectl(*arguments, input=text).stdout


@pytest.fixture(scope="module")
def cluster(apiserver: Cluster) -> Iterator[Cluster]:
    with CrdServer(apiserver) as server:
        server.install(custom_resource_definition())
    yield apiserver


def test_the_checked_in_definition_applies_and_nothing_is_left_to_change(cluster: Cluster) -> None:
    kubectl(cluster, "apply", "--server-side", "--force-conflicts", "-f", "-", given=to_yaml())
    first = json.loads(kubectl(cluster, "get", "crd", "duetdeployments.duetserve.io", "-o", "json"))
    kubectl(cluster, "apply", "--server-side", "-f", "-", given=to_yaml())
    second = json.loads(kubectl(cluster, "get", "crd", "duetdeployments.duetserve.io", "-o", "json"))
    assert first["metadata"]["generation"] == second["metadata"]["generation"]
    conditions = {condition["type"]: condition["status"] for condition in second["status"]["conditions"]}
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert conditions["Established"] == "True"


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_accepted_and_read_as_they_are_stored(cluster: Cluster, example: str) -> None:
    document = EXAMPLES[example]
    stored = kubectl(
        cluster, "create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "json", given=document
    )
    assert parse(json.loads(stored)).spec == parse(document).spec


def test_an_unknown_field_is_refused_by_name(cluster: Cluster) -> None:
    misspelt = patched(minimal(), {"spec.scaling.maxGpus": 4})
    with pytest.raises(DevError, match=r'unknown field "spec\.scaling\.maxGpus"'):
        kubectl(cluster, "create", "--dry-run=server", "-f", "-", given=misspelt)


def status() -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "last_transition_time": "2026-01-02T03:04:05Z"}
    return DuetStatus(
        observed_generation=1,
        conditions=(Condition.model_validate(ready),),
        prefill=PoolStatus(ready=2, desired=3),
        slo=SloStatus(ttft_p95_milliseconds=412, itl_p95_milliseconds=31, burn_rate_5m_milli=200),
        summary=SummaryStatus(prefill="2/3", decode="4/4", attainment="99.1%", deflected="18%"),
    ).to_dict()


@pytest.fixture
def reported(cluster: Cluster, namespace: str) -> str:
    """A namespace with an object `example` whose status is filled in."""
    document = patched(minimal(), {"metadata.namespace": namespace})
    kubectl(cluster, "create", "-f", "-", given=document)
    patch = json.dumps({"status": status()})
    kubectl(
        cluster, "-n", namespace, "patch", "duet", "example", "--subresource=status", "--type=merge", f"--patch={patch}"
    )
    return namespace


def columns(table: str) -> dict[str, str]:
    """Column -> value of a table with one row."""
    titles, row = table.splitlines()
    starts = [match.start() for match in re.finditer(r"(?:^|(?<=  ))\S", titles)]
    ends = [*starts[1:], None]
    return {titles[start:end].strip(): row[start:end].strip() for start, end in zip(starts, ends, strict=True)}


def test_get_shows_the_state_at_a_glance(cluster: Cluster, reported: str) -> None:
    shown = columns(kubectl(cluster, "-n", reported, "get", "duet"))
    assert shown.pop("AGE")
    assert shown == {
        "NAME": "example",
        "READY": "True",
        "PREFILL": "2/3",
        "DECODE": "4/4",
        "TTFT P95": "412",
        "ITL P95": "31",
        "ATTAINMENT": "99.1%",
        "DEFLECTED": "18%",
    }


def test_wide_get_adds_the_reason(cluster: Cluster, reported: str) -> None:
    assert columns(kubectl(cluster, "-n", reported, "get", "duet", "-o", "wide"))["REASON"] == "Serving"


def test_get_all_lists_the_object(cluster: Cluster, reported: str) -> None:
    assert "duetdeployment.duetserve.io/example" in kubectl(cluster, "-n", reported, "get", "all")


def test_wait_reads_the_condition(cluster: Cluster, reported: str) -> None:
    kubectl(cluster, "-n", reported, "wait", "duet/example", "--for=condition=Ready", "--timeout=10s")


def test_status_is_stored_as_it_was_written(cluster: Cluster, reported: str) -> None:
    stored = json.loads(kubectl(cluster, "-n", reported, "get", "duet", "example", "-o", "json"))
    assert parse(stored).status.to_dict() == status()
    assert stored["status"].keys() == status().keys()


def test_a_change_of_status_is_no_new_generation(cluster: Cluster, reported: str) -> None:
    stored = json.loads(kubectl(cluster, "-n", reported, "get", "duet", "example", "-o", "json"))
    assert stored["metadata"]["generation"] == 1


def test_two_owners_each_keep_their_own_variables(cluster: Cluster, namespace: str) -> None:
    for owner, variable in (("platform", "A"), ("team", "B")):
        document = patched(
            minimal(), {"metadata.namespace": namespace, "spec.engine.env": [{"name": variable, "value": owner}]}
        )
        kubectl(cluster, "apply", "--server-side", f"--field-manager={owner}", "-f", "-", given=document)
    stored = json.loads(kubectl(cluster, "-n", namespace, "get", "duet", "example", "-o", "json"))
    assert {entry["name"]: entry["value"] for entry in parse(stored).to_dict()["spec"]["engine"]["env"]} == {
        "A": "platform",
        "B": "team",
    }


def test_a_pod_template_is_kept_as_it_is(cluster: Cluster, namespace: str) -> None:
    template = {"spec": {"tolerations": [{"operator": "Exists"}], "containers": [{"name": "engine", "tty": True}]}}
    document = patched(minimal(), {"metadata.namespace": namespace, "spec.pools.decode.template": template})
    kubectl(cluster, "create", "-f", "-", given=document)
    stored = json.loads(kubectl(cluster, "-n", namespace, "get", "duet", "example", "-o", "json"))
    assert parse(stored).spec.pools.decode.template == template


def explained(cluster: Cluster, path: str) -> str:
    """What kubectl says of a field; the API server tells the schema of a new kind some time after it serves it."""

    def look() -> str:
        return cluster.kubectl("explain", path, check=False).stdout

    return " ".join(until(f"{path} is explained", look, seconds=60).split())


def test_explain_reads_well(cluster: Cluster) -> None:
    text = explained(cluster, "duet.spec.slo")
    assert "ttftMilliseconds <integer> -required- TTFT objective, in milliseconds from arrival" in text
    assert "classes <[]Object> Classes of requests with objectives of their own" in text
    assert "multiplexing <Object> Not supported yet, so refused." in explained(cluster, "duet.spec")
