"""Who may change anything through a gateway's admin port."""

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tests.support.tokens import AUDIENCE, GATEWAY, ISSUER, KEY, mount, trust

from duet_engine.gateway.admin_guard import admin_guard
from duet_engine.protocol import DEMAND_PATH, PLAN_PATH, Trust, gateway_audience

OPERATOR = "system:serviceaccount:duet-system:duet-operator"
AUDIENCE_OF_GATEWAYS = gateway_audience("models", "qwen")


def document() -> Trust:
    return trust(callers=(OPERATOR,)).model_copy(update={"audience": AUDIENCE_OF_GATEWAYS})


async def ask(trust_file: Path | None, method: str, path: str, token: str | None) -> tuple[int, str]:
    """Status and body of one request to a server with the two endpoints."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="done")

    app = web.Application(middlewares=[admin_guard(trust_file)])
    app.add_routes([web.get(DEMAND_PATH, answer), web.put(PLAN_PATH, answer)])
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with TestClient(TestServer(app)) as client:
        response: aiohttp.ClientResponse = await client.request(method, path, headers=headers)
        return response.status, await response.text()


def good(**claims: object) -> str:
    return KEY.token(**{"aud": [AUDIENCE_OF_GATEWAYS], "sub": OPERATOR, "exp": 4e9, "nbf": None, **claims})


@pytest.mark.parametrize(
    ("token", "status"),
    [
        pytest.param(good(), 200, id="the operator"),
        pytest.param(None, 401, id="no token"),
        pytest.param(good(aud=[AUDIENCE]), 401, id="a token that engines are shown"),
        pytest.param(good(sub=GATEWAY), 403, id="another gateway"),
        pytest.param(good(iss=ISSUER + ".evil"), 401, id="another cluster's"),
    ],
)
async def test_only_the_operator_gives_plans(tmp_path: Path, token: str | None, status: int) -> None:
    path = mount(tmp_path, "gateway.json", document().write())
    assert (await ask(path, "PUT", PLAN_PATH, token))[0] == status


async def test_a_refusal_names_the_gateway_and_who_may(tmp_path: Path) -> None:
    path = mount(tmp_path, "gateway.json", document().write())
    _, told = await ask(path, "PUT", PLAN_PATH, good(sub=GATEWAY))
    assert f"{GATEWAY} may not call this gateway; {OPERATOR} may" in told


async def test_reading_is_open(tmp_path: Path) -> None:
    path = mount(tmp_path, "gateway.json", document().write())
    assert await ask(path, "GET", DEMAND_PATH, None) == (200, "done")


async def test_without_its_document_a_gateway_takes_no_plan_and_without_a_file_s_name_from_everybody(
    tmp_path: Path,
) -> None:
    assert (await ask(tmp_path / "gateway.json", "PUT", PLAN_PATH, good()))[0] == 503
    assert await ask(None, "PUT", PLAN_PATH, None) == (200, "done")
