"""Classes end to end: who is served as what, and what is counted of each class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from tests.support.fleet import Fleet, GatewayProcess, all_usable, completion, demand, fleet

from duet_engine.gateway.callers import hashed

SLO = {
    "ttftMilliseconds": 20_000,
    "itlMilliseconds": 5_000,
    "classes": [{"name": "voice", "ttftMilliseconds": 1, "weight": 9}, {"name": "batch", "weight": 2}],
}
KEYS = {"voice-key": " voice", "batch-key": " batch", "plain-key": ""}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("classes")
    keys = folder / "keys"
    keys.mkdir()
    (keys / "all").write_text("".join(f"{hashed(key)}{binding}\n" for key, binding in KEYS.items()))
    with fleet(folder) as started:
        processes: Fleet = started
        engines = [processes.engine("prefill"), processes.engine("decode")]
        yield processes.gateway(engines, "--api-keys-folder", str(keys), config={"slo": SLO})


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as opened:
        yield opened


async def status_of(session: aiohttp.ClientSession, gateway: GatewayProcess, **headers: str) -> int:
    url = gateway.url + "/v1/completions"
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.post(url, json=completion(3, prompt=[1] * 200), headers=sent) as response:
        await response.read()
        return response.status


async def test_each_class_has_its_objectives_and_its_outcome(
    gateway: GatewayProcess, session: aiohttp.ClientSession
) -> None:
    await all_usable(session, gateway, 2)
    assert await status_of(session, gateway) == 401
    for key in KEYS:
        assert await status_of(session, gateway, authorization=f"Bearer {key}") == 200
    assert await status_of(session, gateway, authorization="Bearer voice-key", x_duet_class="batch") == 200
    for wanted in ("voice", "default", "unknown"):
        allowed = wanted == "default"  # the one that has less weight than the key's
        status = await status_of(session, gateway, authorization="Bearer batch-key", x_duet_class=wanted)
        assert status == (200 if allowed else 403), wanted
    classes = {each["name"]: each for each in (await demand(session, gateway))["classes"]}
    assert {name: each["arrivals_total"] for name, each in classes.items()} == {"voice": 1, "batch": 2, "default": 2}
    assert {name: each["met_both_total"] for name, each in classes.items()} == {"voice": 0, "batch": 2, "default": 2}
    assert classes["voice"]["missed_total"] == {"infeasible": 1}, "no worker answers within a millisecond"
    async with session.get(gateway.admin + "/metrics") as response:
        series = await response.text()
    assert 'duet_gateway_objectives_met_total{class="batch",objective="both"} 2.0' in series
    assert 'duet_gateway_objectives_missed_total{cause="infeasible",class="voice"} 1.0' in series
    assert 'duet_gateway_ttft_seconds_bucket{class="voice",le="0.001"} 0.0' in series
    log = gateway.log.read_text()
    lines = [line for line in log.splitlines() if "class=voice" in line]
    assert len(lines) == 1, "one line explains a request"
    for told in ("/v1/completions completed stream", "key=all", "prompt=200", "output=3", "ttft=", "route=["):
        assert told in lines[0]
    assert "voice-key" not in log and "[1, 1" not in log, "never a key, never a prompt"
