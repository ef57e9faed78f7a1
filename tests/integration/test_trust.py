"""Trust between processes: a gateway and engines that ask for tokens, keys that rotate, an engine's own preStop."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.fleet import EngineProcess, Fleet, all_usable, ask, completion, eventually, fleet
from tests.support.tokens import GATEWAY, KEY, SigningKey, mount, trust

NEXT_KEY = SigningKey("next", algorithm="ES256", private=ec.generate_private_key(ec.SECP256R1()))
OPERATOR = "system:serviceaccount:duet-system:duet-operator"


def token(key: SigningKey = KEY, **claims: Any) -> str:
    """Good for an hour from now."""
    now = time.time()
    return key.token(**{"iat": now, "nbf": now, "exp": now + 3600, **claims})


@dataclass
class Trusting:
    """An engine that asks for tokens, and the files that it does it by."""

    engine: EngineProcess
    folder: Path
    local_token: Path

    def believe(self, *keys: SigningKey, **fields: Any) -> None:
        mount(self.folder, "trust.json", trust(*keys, **fields).write())

    async def status(self, session: aiohttp.ClientSession, path: str, bearer: str | None, **options: Any) -> int:
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        method = options.pop("method", "GET")
        async with session.request(method, self.engine.url + path, headers=headers, **options) as response:
            await response.read()
            return response.status

    def command(self, *arguments: str, token_file: Path | None) -> subprocess.CompletedProcess[str]:
        """`duet-engine` as the pod's preStop runs it."""
        environment = {} if token_file is None else {"DUET_LOCAL_TOKEN_FILE": str(token_file)}
        command = [sys.executable, "-m", "duet_engine.launch", *arguments, "--url", self.engine.url]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as started:
        yield started


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as opened:
        yield opened


@pytest.fixture
def trusting(processes: Fleet, tmp_path: Path) -> Trusting:
    folder = tmp_path / "trust"
    folder.mkdir()
    path = mount(folder, "trust.json", trust().write())
    local = tmp_path / "local" / "token"
    engine = processes.engine("decode", "--trust-file", str(path), "--local-token-file", str(local))
    return Trusting(engine, folder, local)


async def test_an_engine_answers_proven_callers_only(trusting: Trusting, session: aiohttp.ClientSession) -> None:
    stranger = token(sub="system:serviceaccount:models:stranger")
    drain = {"lease_seconds": 30, "requested_by": "x", "reason": "y"}
    for path, options in (
        ("/duet/state", {}),
        ("/duet/info", {}),
        ("/duet/drain", {"method": "PUT", "json": drain}),
        ("/duet/knobs", {"method": "PUT", "json": {}}),
        ("/generate", {"method": "POST", "json": {}}),
        ("/v1/completions", {"method": "POST", "json": completion()}),
        ("/flush_cache", {}),
    ):
        assert await trusting.status(session, path, None, **options) == 401, path
        assert await trusting.status(session, path, stranger, **options) == 403, path
    assert await trusting.status(session, "/duet/state", token()) == 200
    for path in ("/duet/live", "/metrics"):
        assert await trusting.status(session, path, None) == 200, path
    async with session.get(trusting.engine.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    (missing,) = [line for line in lines if line.startswith("duet_engine_denied_calls_total") and '"missing"' in line]
    assert missing.endswith(" 7.0")
    async with session.get(trusting.engine.url + "/duet/drain", headers={"Authorization": f"Bearer {stranger}"}) as no:
        told = (await no.json())["message"]
    assert told == f"system:serviceaccount:models:stranger may not call this engine; {GATEWAY} may"


async def test_keys_and_callers_change_without_a_restart(trusting: Trusting, session: aiohttp.ClientSession) -> None:
    old, new, operator = token(), token(NEXT_KEY), token(NEXT_KEY, sub=OPERATOR)
    assert [await trusting.status(session, "/duet/state", each) for each in (old, new)] == [200, 401]
    trusting.believe(KEY, NEXT_KEY)
    assert [await trusting.status(session, "/duet/state", each) for each in (old, new, operator)] == [200, 200, 403]
    trusting.believe(NEXT_KEY, callers=(OPERATOR,))
    assert [await trusting.status(session, "/duet/state", each) for each in (old, new, operator)] == [401, 403, 200]


async def test_a_gateway_presents_its_token_and_follows_its_rotation(
    trusting: Trusting, processes: Fleet, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    path = mount(own, "token", token().encode())
    gateway = processes.gateway([trusting.engine], "--engine-token-file", str(path))
    await all_usable(session, gateway, 1)
    assert (await ask(session, gateway.url, completion())).whole

    # The old key is gone at once: only requests that present the token of the new one are answered.
    trusting.believe(NEXT_KEY)
    mount(own, "token", token(NEXT_KEY).encode())
    assert (await ask(session, gateway.url, completion())).whole

    # A client's own credentials are for the gateway, never for engines.
    async with session.post(
        gateway.url + "/v1/completions", json=completion(), headers={"Authorization": "Bearer client"}
    ) as response:
        assert response.status == 200, await response.text()


async def test_a_gateway_that_is_not_believed_says_why(trusting: Trusting, processes: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(token(sub="system:serviceaccount:models:other-gateway"))
    gateway = processes.gateway([trusting.engine], "--engine-token-file", str(path))

    async def said() -> bool:
        return "system:serviceaccount:models:other-gateway may not call this engine" in gateway.log.read_text()

    await eventually(said, "the gateway to say why it has no worker")


async def test_only_the_container_s_own_command_may_drain(trusting: Trusting, session: aiohttp.ClientSession) -> None:
    shown = await asyncio.to_thread(trusting.command, "show", "drain", token_file=trusting.local_token)
    assert (shown.returncode, '"phase":"serving"' in shown.stdout) == (0, True), shown
    for token_file in (None, trusting.local_token.with_name("none")):
        refused = await asyncio.to_thread(trusting.command, "drain", token_file=token_file)
        assert refused.returncode == 1 and "401: " in refused.stderr, refused
    assert await trusting.status(session, "/duet/ready", None) == 200
    drained = await asyncio.to_thread(trusting.command, "drain", token_file=trusting.local_token)
    assert (drained.returncode, drained.stderr) == (0, "drained\n")
    assert await trusting.status(session, "/duet/ready", None) == 503
