"""Who may reach an object's pods, whom its engines believe, and how many of them an eviction may take."""

import json
from typing import Any

import pytest
from tests.support.manifests import FULL, SURROUNDINGS, deployment

from duet_engine.protocol import Role, Trust
from duet_operator.api.v1alpha1 import DuetDeployment
from duet_operator.resources.budgets import disruption_budgets
from duet_operator.resources.config_maps import trust_config_map
from duet_operator.resources.gateway import gateway_deployment
from duet_operator.resources.images import resolve
from duet_operator.resources.network import network_policies
from duet_operator.resources.pools import pool_deployment
from duet_operator.resources.trust import GATEWAY_TRUST_KEY, TRUST_KEY, TokenIssuer

WITHOUT_GATEWAY = deployment(
    {"spec.gateway.enabled": False, "spec.pools.prefill.minReplicas": 1}, name="full", namespace="models"
)
OPERATOR = "system:serviceaccount:duet-system:duet-operator"
GATEWAY = "system:serviceaccount:models:full-gateway"


def documents(duet: DuetDeployment, *, operator: str = OPERATOR) -> dict[str, Trust]:
    assert SURROUNDINGS.issuer is not None
    data = trust_config_map(duet, SURROUNDINGS.issuer, operator=operator)["data"]
    return {name: Trust.read(document) for name, document in data.items()}


def trust(duet: DuetDeployment, *, operator: str = OPERATOR) -> Trust:
    return documents(duet, operator=operator)[TRUST_KEY]


def test_engines_believe_their_own_gateway_and_the_operator() -> None:
    document = trust(FULL)
    assert document.callers == (GATEWAY, OPERATOR)
    assert (document.audience, document.issuer) == ("duet-engine/models/full", "https://kubernetes.default.svc")
    assert [key["kid"] for key in document.keys] == ["k1"]
    assert not document.open_requests
    assert trust(FULL, operator="").callers == (GATEWAY,)


def test_without_a_gateway_requests_are_open_and_only_the_operator_is_believed() -> None:
    document = trust(WITHOUT_GATEWAY)
    assert (document.callers, document.open_requests) == ((OPERATOR,), True)
    assert list(documents(WITHOUT_GATEWAY)) == [TRUST_KEY]


def test_gateways_believe_the_operator_alone_and_no_token_that_engines_are_shown() -> None:
    document = documents(FULL)[GATEWAY_TRUST_KEY]
    assert (document.callers, document.audience) == ((OPERATOR,), "duet-gateway/models/full")
    assert document.keys == trust(FULL).keys
    spec = gateway_deployment(FULL, resolve(FULL))["spec"]["template"]["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "trust"]
    assert volume["configMap"] == {"name": "full-duet-trust", "optional": True}
    container = spec["containers"][0]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "trust"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["DUET_TRUST_FILE"] == f"{mount['mountPath']}/{GATEWAY_TRUST_KEY}"


def test_the_order_of_keys_is_no_change() -> None:
    keys: Any = ({"kid": "b"}, {"kid": "a"})
    config_maps = [
        trust_config_map(FULL, TokenIssuer(issuer="i", keys=order), operator=OPERATOR) for order in (keys, keys[::-1])
    ]
    assert config_maps[0] == config_maps[1]


def test_a_gateway_s_token_is_for_the_audience_that_its_engines_ask_for() -> None:
    spec = gateway_deployment(FULL, resolve(FULL))["spec"]["template"]["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "engine-token"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == trust(FULL).audience
    container = spec["containers"][0]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "engine-token"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    path = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    assert variables["DUET_ENGINE_TOKEN_FILE"] == path


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_an_engine_pod_has_no_token_and_finds_its_files_in_its_mounts(role: Role) -> None:
    spec = pool_deployment(FULL, role, resolve(FULL))["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountToken" not in json.dumps(spec["volumes"])
    container = spec["containers"][0]
    folders = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    variables = {each["name"]: each.get("value") for each in container["env"]}
    for variable, volume in (("DUET_TRUST_FILE", "trust"), ("DUET_LOCAL_TOKEN_FILE", "local")):
        folder, _, _ = str(variables[variable]).rpartition("/")
        assert folders[folder] == volume
    (mounted,) = [each["configMap"]["name"] for each in spec["volumes"] if each["name"] == "trust"]
    assert SURROUNDINGS.issuer is not None
    config_map = trust_config_map(FULL, SURROUNDINGS.issuer, operator=OPERATOR)
    assert mounted == config_map["metadata"]["name"]
    assert str(variables["DUET_TRUST_FILE"]).rpartition("/")[2] == TRUST_KEY in config_map["data"]


# --- the network: a small reading of NetworkPolicies ---


def admits(policies: tuple[dict[str, Any], ...], to: dict[str, str], port: str, source: dict[str, Any]) -> bool:
    """Whether a pod with labels `to` takes a connection on the named port from `source` (namespace, labels)."""
    chosen = [policy["spec"] for policy in policies if _selects(policy["spec"]["podSelector"], to)]
    assert chosen, "no policy applies, so everything is let in"
    return any(_rule_admits(rule, port, source) for spec in chosen for rule in spec["ingress"])


def _rule_admits(rule: dict[str, Any], port: str, source: dict[str, Any]) -> bool:
    ports = [each["port"] for each in rule.get("ports", [])]
    return (not ports or port in ports) and ("from" not in rule or any(_peer(peer, source) for peer in rule["from"]))


def _peer(peer: dict[str, Any], source: dict[str, Any]) -> bool:
    namespace = peer.get("namespaceSelector")
    wanted = "models" if namespace is None else namespace["matchLabels"]["kubernetes.io/metadata.name"]
    return source["namespace"] == wanted and _selects(peer["podSelector"], source["labels"])


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", ())
    )


def pod(role: str, owner: str = "full", namespace: str = "models") -> dict[str, Any]:
    return {"namespace": namespace, "labels": {"duetserve.io/name": owner, "duetserve.io/role": role}}


OPERATOR_POD = {"namespace": "duet-system", "labels": {"app.kubernetes.io/name": "duet-operator"}}
IMPOSTOR_POD = {"namespace": "models", "labels": {"app.kubernetes.io/name": "duet-operator"}}
STRANGER = {"namespace": "models", "labels": {"app": "anything"}}
ELSEWHERE = {"namespace": "default", "labels": {"app": "anything"}}


@pytest.mark.parametrize(
    ("to", "port", "source", "let_in"),
    [
        ("decode", "http", pod("gateway"), True),
        ("decode", "http", OPERATOR_POD, True),
        ("decode", "http", IMPOSTOR_POD, False),
        ("decode", "http", STRANGER, False),
        ("decode", "http", pod("gateway", owner="other"), False),
        ("decode", "http", pod("gateway", namespace="default"), False),
        ("prefill", "bootstrap", pod("decode"), True),
        ("prefill", "bootstrap", pod("gateway"), False),
        ("prefill", "bootstrap", OPERATOR_POD, False),
        ("decode", "a transfer backend's own", pod("prefill"), True),
        ("decode", "a transfer backend's own", pod("prefill", owner="other"), False),
        ("gateway", "http", STRANGER, True),
        ("gateway", "http", ELSEWHERE, True),
        ("gateway", "admin", OPERATOR_POD, True),
        ("gateway", "admin", STRANGER, False),
        ("gateway", "admin", pod("decode"), False),
    ],
)
def test_who_reaches_whom(to: str, port: str, source: dict[str, Any], let_in: bool) -> None:
    policies = network_policies(FULL, operator_namespace="duet-system")
    assert admits(policies, pod(to)["labels"], port, source) is let_in


def test_without_a_gateway_any_router_of_the_namespace_reaches_engines() -> None:
    policies = network_policies(WITHOUT_GATEWAY, operator_namespace="duet-system")
    assert [policy["metadata"]["name"] for policy in policies] == ["full-engines"]
    assert admits(policies, pod("decode")["labels"], "http", STRANGER)
    assert not admits(policies, pod("decode")["labels"], "http", ELSEWHERE)


def test_nothing_limits_what_pods_fetch() -> None:
    for policy in network_policies(FULL, operator_namespace="duet-system"):
        assert policy["spec"]["policyTypes"] == ["Ingress"]


# --- disruption budgets ---


def test_one_pod_may_be_evicted_beside_those_that_drain() -> None:
    budgets = {
        budget["metadata"]["name"]: budget["spec"] for budget in disruption_budgets(FULL, draining={Role.DECODE: 2})
    }
    assert {name: spec["maxUnavailable"] for name, spec in budgets.items()} == {
        "full-prefill": 1,
        "full-decode": 3,
        "full-gateway": 1,
    }
    assert {spec["unhealthyPodEvictionPolicy"] for spec in budgets.values()} == {"AlwaysAllow"}
    images = resolve(FULL)
    for manifest in (*(pool_deployment(FULL, role, images) for role in (Role.PREFILL, Role.DECODE)),):
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        chosen = [name for name, spec in budgets.items() if _selects(spec["selector"], labels)]
        assert chosen == [manifest["metadata"]["name"]]


def test_without_a_gateway_there_is_no_budget_for_it() -> None:
    names = [budget["metadata"]["name"] for budget in disruption_budgets(WITHOUT_GATEWAY, draining={})]
    assert names == ["full-prefill", "full-decode"]
