"""Trust as the operator keeps it: keys of the cluster's tokens that survive failures, tokens for engines, one write."""

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.operator_bench import KEY, Bench
from tests.support.virtual_pool import VirtualEngine
from tests.support.workers import NOW

from duet_engine.drain import Drain
from duet_engine.protocol import Trust
from duet_operator.cluster import ClusterError
from duet_operator.metrics import Metrics
from duet_operator.pods import Pod
from duet_operator.resources.trust import TokenIssuer
from duet_operator.settings import SettingsError
from duet_operator.trust import DISCOVERY_PATH, KEYS_PATH, IssuerWatch, PodTokens, SharedToken

TRUST = ("ConfigMap", KEY.namespace, "served-duet-trust")


@dataclass
class ApiServer:
    """What it says of tokens, and which ones it was asked for."""

    documents: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    now: float = NOW

    async def document(self, path: str) -> dict[str, Any]:
        if path not in self.documents:
            raise ClusterError(f"GET {path}", status=403, reason="Forbidden", message="not for you")
        return dict(self.documents[path])

    async def request_token(self, namespace: str, account: str, *, audience: str, seconds: int) -> dict[str, Any]:
        self.asked.append((namespace, account, audience))
        expires = datetime.fromtimestamp(self.now + seconds, UTC).isoformat()
        return {"token": f"token-{len(self.asked)}", "expirationTimestamp": expires}


def telling(*kids: str) -> dict[str, Any]:
    return {DISCOVERY_PATH: {"issuer": "https://i"}, KEYS_PATH: {"keys": [{"kid": kid} for kid in kids]}}


def reads(metrics: Metrics) -> dict[str, float]:
    lines = metrics.exposition().decode().splitlines()
    found = [line for line in lines if line.startswith("duet_operator_token_key_reads_total")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}


# --- keys ---


async def test_keys_that_were_read_outlive_failures_which_are_told(caplog: pytest.LogCaptureFixture) -> None:
    server, metrics = ApiServer(telling("a")), Metrics()
    watch = IssuerWatch(server, metrics=metrics)
    assert await watch.refresh()
    assert watch.issuer == TokenIssuer(issuer="https://i", keys=({"kid": "a"},))
    bad: tuple[dict[str, Any], ...] = (
        {},
        telling(),
        {DISCOVERY_PATH: {}, KEYS_PATH: {"keys": [{}]}},
        {DISCOVERY_PATH: {"issuer": "i"}, KEYS_PATH: {"keys": None}},
    )
    for documents in bad:
        server.documents = documents
        assert not await watch.refresh()
        assert watch.issuer == TokenIssuer(issuer="https://i", keys=({"kid": "a"},))
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == len(bad) and "the last ones stay in force" in told[0].getMessage()
    server.documents = telling("a", "b")
    assert await watch.refresh()
    assert [key["kid"] for key in watch.issuer.keys] == ["a", "b"]
    assert reads(metrics) == {"read": 2, "failed": len(bad)}


async def test_new_keys_cost_each_object_one_write_of_one_config_map() -> None:
    bench = Bench()
    await bench.run_pass()
    bench.make_ready()
    await bench.run_pass(2)
    bench.issuers.issuer = TokenIssuer(issuer="https://i", keys=({"kid": "new"},))
    assert await bench.run_pass(3) == [("apply", "ConfigMap", "served-duet-trust")]
    document = Trust.read(bench.cluster.objects[TRUST]["data"]["trust.json"])
    assert (document.issuer, document.keys) == ("https://i", ({"kid": "new"},))


async def test_an_operator_that_cannot_read_keys_leaves_the_document_that_is_there() -> None:
    bench = Bench()
    await bench.run_pass()
    before = bench.cluster.objects[TRUST]["data"]
    bench.issuers.issuer = None
    await bench.run_pass(2)
    assert bench.cluster.objects[TRUST]["data"] == before
    assert "token" not in bench.condition("Progressing")[2]


async def test_engines_that_could_believe_nobody_are_told_of_in_the_status() -> None:
    bench = Bench()
    bench.issuers.issuer = None
    await bench.run_pass()
    assert TRUST not in bench.cluster.objects
    status, reason, message = bench.condition("Progressing")
    assert (status, reason) == ("False", "ChildRefused") and "service-account tokens can't be read" in message


# --- disruption budgets ---


async def test_the_budget_follows_the_drains_and_a_quiet_pass_writes_nothing() -> None:
    bench = Bench()
    bench.planner.decode = 2
    await bench.run_pass(2)
    bench.make_ready()
    await bench.run_pass(2)
    for pod in bench.pods("decode"):
        bench.engines.by_uid[pod.uid] = VirtualEngine(Drain(worker=pod.name), started=True, requests=1)
    budget = ("PodDisruptionBudget", KEY.namespace, "served-decode")
    assert bench.cluster.objects[budget]["spec"]["maxUnavailable"] == 1
    bench.planner.decode = 1
    await bench.run_pass()
    assert ("apply", "PodDisruptionBudget", "served-decode") in await bench.run_pass()
    assert bench.cluster.objects[budget]["spec"]["maxUnavailable"] == 2
    assert [write for write in await bench.run_pass(2) if write[1] == "PodDisruptionBudget"] == []


# --- tokens for pods ---


def pod(owner: str, namespace: str = "models", role: str = "decode") -> Pod:
    return Pod(namespace=namespace, name=f"{owner}-1", uid=owner, owner=owner, role=role)


async def test_each_object_s_engines_are_shown_a_token_of_their_own() -> None:
    server = ApiServer()
    tokens = PodTokens(server, namespace="duet-system", account="duet-operator", now_seconds=lambda: server.now)
    first, other = await tokens.credentials(pod("a")), await tokens.credentials(pod("b"))
    assert first == {"Authorization": "Bearer token-1"} != other
    assert await tokens.credentials(pod("a")) == first
    assert await tokens.credentials(pod("a", namespace="default")) != first
    assert server.asked == [
        ("duet-system", "duet-operator", f"duet-engine/{name}") for name in ("models/a", "models/b", "default/a")
    ]


async def test_gateways_are_shown_another_token_than_engines() -> None:
    """Else an engine could give its own gateway plans."""
    server = ApiServer()
    tokens = PodTokens(server, namespace="n", account="a", now_seconds=lambda: server.now)
    shown = [await tokens.credentials(pod("a", role=role)) for role in ("prefill", "decode", "gateway")]
    assert shown[0] == shown[1] != shown[2]
    assert [audience for _, _, audience in server.asked] == ["duet-engine/models/a", "duet-gateway/models/a"]


async def test_a_token_is_renewed_before_it_expires() -> None:
    server = ApiServer()
    tokens = PodTokens(server, namespace="n", account="a", now_seconds=lambda: server.now)
    seen = []
    for minutes in (0, 47, 49, 90):
        server.now = NOW + 60 * minutes
        seen.append((await tokens.credentials(pod("a")))["Authorization"].rpartition("-")[2])
    assert seen == ["1", "1", "2", "2"]


async def test_a_shared_token_follows_its_file_and_must_be_there(tmp_path: Any) -> None:
    path = tmp_path / "token"
    with pytest.raises(SettingsError, match="DUET_OPERATOR_ENGINE_TOKEN_PATH names"):
        SharedToken(str(path))
    path.write_text("one\n")
    shared = SharedToken(str(path))
    assert await shared.credentials(pod("a")) == {"Authorization": "Bearer one"}
    path.write_text("another\n")
    assert await shared.credentials(pod("a")) == {"Authorization": "Bearer another"}
    assert await SharedToken("").credentials(pod("a")) == {}
