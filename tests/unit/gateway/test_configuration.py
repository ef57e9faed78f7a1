"""What a gateway is told: files, specs, pods, plans, learned token sizes."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from duet_engine.gateway.__main__ import main
from duet_engine.gateway.discovery import StaticDiscovery, pod_member
from duet_engine.gateway.kubernetes_watch import cluster_access
from duet_engine.gateway.live_settings import live_settings
from duet_engine.gateway.plan import PlanHolder
from duet_engine.gateway.settings import Limits, SettingsError, read_static_config
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.policy.deflect import DeflectionMode
from duet_engine.protocol import Role, RoutingPlan


async def test_a_static_file_gives_members_and_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "workers:\n"
        "- {url: 'http://127.0.0.1:31001/', role: prefill, bootstrapPort: 9000}\n"
        "- {url: 'http://127.0.0.1:31002', role: decode, name: d, revision: r2}\n"
        "slo: {ttftMilliseconds: 700, itlMilliseconds: 40}\n"
    )
    config = read_static_config(path)
    prefill, decode = await anext(StaticDiscovery(config).members())
    assert (prefill.url, prefill.name, prefill.bootstrap_port) == ("http://127.0.0.1:31001", "127.0.0.1:31001", 9000)
    assert (decode.name, decode.role, decode.revision, decode.host) == ("d", Role.DECODE, "r2", "127.0.0.1")
    assert live_settings(config.spec(), generation=1).objective.ttft_seconds == 0.7


@pytest.mark.parametrize("limit", [field.name for field in fields(Limits)])
def test_every_limit_is_an_option_with_its_default(limit: str) -> None:
    stem = limit.removesuffix("_bytes")
    names = {limit: 1, f"max_{stem}_kib": 2**10, f"max_{stem}_mib": 2**20, f"{stem}_mib": 2**20}
    (option,) = [each for each in main.params if each.name in names]
    assert option.default * names[str(option.name)] == getattr(Limits(), limit)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers: [{url: 'https://x', role: decode}]", "workers.0.url: "),
        ("workers: [{url: 'http://x', role: cook}]", "workers.0.role: "),
        ("workers: [{url: 'http://x', role: decode, bootstrapPort: 0}]", "workers.0.bootstrapPort: "),
        ("workers: []\nslos: {}", "slos: "),
        ("{}", "workers: Field required"),
        ("workers: [", "expected"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refusal:
        read_static_config(path)
    assert str(refusal.value).startswith(f"{path}: ") or says == "expected"
    assert says in str(refusal.value)


def test_a_spec_becomes_live_settings_and_knobs() -> None:
    spec = {
        "model": {"id": "org/model", "servedName": "short"},
        "slo": {"ttftMilliseconds": 800, "ttftUnloadedPercent": 200, "itlMilliseconds": 40},
        "deflection": {"mode": "Off", "alphaPercent": 150, "betaPercent": 70},
        "multiplexing": {"mode": "On", "maxLookAhead": 4},
        "scaling": {"mode": "Auto"},
    }
    live = live_settings(spec, generation=9)
    assert live.objective.ttft_objective_seconds(1.0) == 2.0
    assert live.model_names == ("short", "org/model")
    assert (live.deflection.mode, live.deflection.alpha) == (DeflectionMode.OFF, 1.5)
    knobs = live.knobs()
    assert (knobs.generation, knobs.itl_milliseconds, knobs.deflection_enabled) == (9, 40, False)
    assert (knobs.beta_percent, knobs.multiplexing, knobs.max_look_ahead) == (70, "On", 4)


@pytest.mark.parametrize(
    "spec",
    [{}, {"slo": None}, {"slo": {"ttftMilliseconds": "soon"}, "deflection": {"mode": "Sometimes"}}, {"slo": []}],
)
def test_an_unreadable_spec_leaves_the_defaults(spec: dict[str, Any]) -> None:
    live = live_settings(spec, generation=1)
    assert (live.objective.ttft_seconds, live.objective.itl_seconds) == (1.0, 0.05)
    assert live.deflection.mode is DeflectionMode.AUTO


def pod(**changes: Any) -> dict[str, Any]:
    labels = {"duetserve.io/name": "x", "duetserve.io/role": "decode", "duetserve.io/revision": "r1"}
    ports = [{"name": "http", "containerPort": 31000}]
    return {
        "metadata": {"uid": "u", "name": "x-decode-1", "labels": labels, **changes.get("metadata", {})},
        "spec": {"containers": [{"name": "engine", "ports": ports}]},
        "status": {
            "podIP": "10.244.0.7",
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            **changes.get("status", {}),
        },
    }


def test_a_pod_is_a_member() -> None:
    member = pod_member(pod())
    assert member is not None
    assert (member.uid, member.name, member.url) == ("u", "x-decode-1", "http://10.244.0.7:31000")
    assert (member.role, member.revision, member.bootstrap_port, member.ready) == (Role.DECODE, "r1", 8998, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        {"status": {"conditions": None}},
        {"metadata": {"deletionTimestamp": "2026-11-21T00:00:00Z"}},
    ],
    ids=["unready", "no condition", "deleting"],
)
def test_a_pod_that_should_get_no_new_work(changes: dict[str, Any]) -> None:
    member = pod_member(pod(**changes))
    assert member is not None and not member.ready


@pytest.mark.parametrize(
    "changes",
    [{"status": {"podIP": None}}, {"status": {"phase": "Failed"}}, {"metadata": {"labels": {}}}],
    ids=["no address", "ended", "no role"],
)
def test_a_pod_that_is_no_member(changes: dict[str, Any]) -> None:
    assert pod_member(pod(**changes)) is None


def test_an_ipv6_address_is_bracketed() -> None:
    member = pod_member(pod(status={"podIP": "fd00::7"}))
    assert member is not None
    assert (member.url, member.host) == ("http://[fd00::7]:31000", "fd00::7")


def test_without_credentials_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError, match="KUBECONFIG; use --config"):
        cluster_access()


def test_a_kubeconfig_without_its_context_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    path.write_text("{current-context: a, contexts: [], clusters: [], users: []}")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(SettingsError, match="contexts: no entry 'a'"):
        cluster_access()


def test_a_plan_holds_for_its_lease_and_never_goes_back() -> None:
    holder = PlanHolder()
    assert holder.current(0.0) is None
    newer, older = RoutingPlan(generation=2, lease_seconds=10), RoutingPlan(generation=1, lease_seconds=10)
    assert holder.take(newer, 0.0) is newer
    assert holder.take(older, 5.0) is newer
    assert holder.current(9.9) is newer
    assert holder.current(10.0) is None
    assert holder.take(older, 10.0) is older
    assert holder.remaining_seconds(12.0) == 8.0


def test_the_size_of_a_token_is_learned() -> None:
    tokens = TokenEstimator()
    assert tokens.estimate(4000) == 1000
    for _ in range(200):
        tokens.learn(text_bytes=2000, prompt_tokens=1000)
    assert tokens.bytes_per_token == pytest.approx(2.0, abs=0.1)
    tokens.learn(text_bytes=0, prompt_tokens=1000)
    assert tokens.estimate(0) == 1


def test_each_class_has_its_own_size_of_a_token() -> None:
    tokens = TokenEstimator()
    for _ in range(300):
        tokens.learn(text_bytes=600, prompt_tokens=300, class_name="code")
        tokens.learn(text_bytes=1200, prompt_tokens=300, class_name="chat")
    assert tokens.estimate(1000, "code") == pytest.approx(500, rel=0.05)
    assert tokens.estimate(1000, "chat") == pytest.approx(250, rel=0.05)
    assert tokens.estimate(1000, "new") == pytest.approx(333, rel=0.05), "as all together"
