"""API keys and classes: who is let in, as what, and what a change of the Secret does."""

from __future__ import annotations

from pathlib import Path

import pytest

from duet_engine.gateway import callers as callers_module
from duet_engine.gateway.callers import CLASS_HEADER, Caller, Callers, hashed
from duet_engine.gateway.live_settings import LiveSettings, live_settings
from duet_engine.gateway.wire.messages import Refusal

CLASSES = [
    {"name": "chat", "ttftMilliseconds": 300, "weight": 10},
    {"name": "batch", "itlMilliseconds": 200, "weight": 1},
]
LIVE = live_settings({"slo": {"ttftMilliseconds": 800, "itlMilliseconds": 50, "classes": CLASSES}}, generation=1)


def live() -> LiveSettings:
    return LIVE


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **headers}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "team-a").write_text(f"# their chat\n{hashed('a-key')} chat\n\n")
    (tmp_path / "team-b").write_text(f"{hashed('b-key')}\n{hashed('b-batch')} batch\n")
    (tmp_path / "..data").write_text("not a key")
    return tmp_path


def test_a_class_says_what_it_says_and_the_rest_is_as_for_all() -> None:
    assert (LIVE.objective_of("chat").ttft_seconds, LIVE.objective_of("chat").itl_seconds) == (0.3, 0.05)
    assert (LIVE.objective_of("batch").ttft_seconds, LIVE.objective_of("batch").itl_seconds) == (0.8, 0.2)
    assert LIVE.objective_of("gone") == LIVE.objective and LIVE.weight_of("gone") == 1


def test_chunks_beside_a_batch_are_safe_for_the_strictest_class() -> None:
    slo = {"ttftMilliseconds": 800, "itlMilliseconds": 50}
    strict = live_settings({"slo": {**slo, "classes": [{"name": "voice", "itlMilliseconds": 30}]}}, generation=1)
    assert strict.deflection.itl_seconds == 0.03 and strict.knobs().itl_milliseconds == 30
    assert LIVE.deflection.itl_seconds == 0.05 and LIVE.knobs().itl_milliseconds == 50


def test_the_default_class_may_be_listed() -> None:
    listed = live_settings(
        {"slo": {"classes": [{"name": "default", "ttftMilliseconds": 90, "weight": 5}]}}, generation=1
    )
    assert (listed.objective_of("default").ttft_seconds, listed.weight_of("default")) == (0.09, 5)


def test_a_known_key_says_who_asks_and_as_what(folder: Path) -> None:
    callers = Callers(folder, live)
    assert callers.identify(bearer("a-key")) == Caller("team-a", "chat")
    assert callers.identify(bearer("b-key")) == Caller("team-b", "default")
    assert callers.identify({"authorization": "bearer b-batch"}) == Caller("team-b", "batch")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("other"),
        {"authorization": "a-key"},
        bearer(hashed("a-key")),
        {"authorization": "Basic x"},
    ],
)
def test_everybody_else_is_refused(folder: Path, headers: dict[str, str]) -> None:
    with pytest.raises(Refusal, match="API key") as refusal:
        Callers(folder, live).identify(headers)
    assert refusal.value.status == 401
    assert dict(refusal.value.headers)["www-authenticate"].startswith("Bearer")


def test_a_header_may_only_lower_the_class(folder: Path) -> None:
    callers = Callers(folder, live)
    assert callers.identify(bearer("a-key", **{CLASS_HEADER: "batch"})) == Caller("team-a", "batch")
    assert callers.identify(bearer("a-key", **{CLASS_HEADER: "chat"})).class_name == "chat"
    for key, wanted in (("b-key", "chat"), ("b-batch", "chat"), ("a-key", "unknown"), ("b-key", "batch")):
        with pytest.raises(Refusal) as refusal:
            callers.identify(bearer(key, **{CLASS_HEADER: wanted}))
        assert refusal.value.status == 403


def test_without_keys_all_are_of_the_default_class() -> None:
    callers = Callers(None, live)
    assert callers.identify({}) == callers.identify(bearer("whatever")) == Caller("", "default")
    with pytest.raises(Refusal, match="less weight"):
        callers.identify({CLASS_HEADER: "chat"})


def test_changed_keys_are_in_force_soon_and_bad_ones_never(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers_module, "LOOK_AGAIN_SECONDS", 0.0)
    callers = Callers(folder, live)
    (folder / "team-a").write_text(f"{hashed('new-key')} chat")
    assert callers.identify(bearer("new-key")).key == "team-a"
    with pytest.raises(Refusal):
        callers.identify(bearer("a-key"))
    (folder / "team-a").write_text("new-key in plain text")
    assert callers.identify(bearer("new-key")).key == "team-a", "what was read last stays in force"


@pytest.mark.parametrize("line", ["plain-key", "sha256:abc", hashed("x") + " Not_A_Class", hashed("x") + " chat extra"])
def test_a_secret_that_cannot_be_used_is_named_at_the_start(tmp_path: Path, line: str) -> None:
    (tmp_path / "team").write_text(line)
    with pytest.raises(ValueError, match="team, line 1"):
        Callers(tmp_path, live)
