"""What speaks HTTP to gateways, engines and the API server, against servers on loopback: answers, silence, nonsense."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio import client
from tests.support.documents import document, served

from duet_engine.protocol import DrainPhase, DrainStatus, RoutingPlan
from duet_operator.assembly import pod_session
from duet_operator.cluster import POD, ClusterError, ConflictError
from duet_operator.engines import EngineClient, EngineError
from duet_operator.kubernetes_cluster import CONCURRENT_REQUESTS, KubernetesCluster
from duet_operator.plans import PlanPusher
from duet_operator.pods import Pod
from duet_operator.signals.gateways import GatewayReader
from duet_operator.trust import SharedToken

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, *, port: int = 0) -> AsyncIterator[int]:
    """A server that answers everything with `handler`; yields its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def pod(name: str, port: int) -> Pod:
    return Pod(namespace="n", name=name, uid=name, address="127.0.0.1", ports={"admin": port, "http": port})


# --- gateways ---


def answering(body: bytes | str, status: int = 200) -> Handler:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, status=status)

    return answer


async def never(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (answering(b"", 503), "answered 503"),
        (answering(b"<html>"), "sent what can't be read: GatewayDemand: document"),
        (answering(b'{"gateway": "g", "loop_lag_p99_seconds": NaN}'), "sent a number that isn't one"),
        (answering(b'{"gateway": "g", "inflight_requests": "many"}'), "GatewayDemand: inflight_requests"),
        (never, "no answer in 0.2 s"),
    ],
    ids=["an error", "no JSON", "NaN", "a wrong type", "silence"],
)
async def test_a_gateway_that_does_not_tell_is_named_with_the_reason(
    session: aiohttp.ClientSession, handler: Handler, said: str
) -> None:
    reader = GatewayReader(session, timeout_seconds=0.2)
    async with serving(handler) as bad, serving(answering(document(served(3)).write())) as good:
        scrape = await reader.read([pod("bad", bad), pod("good", good)])
    assert list(scrape.documents) == ["good"]
    assert list(scrape.failures) == ["bad"]
    assert said in scrape.failures["bad"]


async def test_a_gateway_that_is_gone_is_unreachable(session: aiohttp.ClientSession) -> None:
    async with serving(answering(b"")) as port:
        pass
    scrape = await GatewayReader(session, timeout_seconds=1).read([pod("gone", port)])
    assert "unreachable" in scrape.failures["gone"]


# --- engines ---


async def test_a_drain_is_asked_for_read_and_ended(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    asked: list[tuple[str, str, str | None, str]] = []

    async def engine(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, request.headers.get("Authorization"), await request.text()))
        return web.Response(body=DrainStatus(worker="w", phase=DrainPhase.DRAINING).write())

    async with serving(engine) as port:
        engines = EngineClient(session, timeout_seconds=1, credentials=SharedToken(str(token)).credentials)
        status = await engines.drain(pod("w", port), lease_seconds=30.0, reason="ScaleDown")
        await engines.drain_status(pod("w", port))
        await engines.serve_again(pod("w", port))
    assert status.phase is DrainPhase.DRAINING
    assert [(method, path, header) for method, path, header, _ in asked] == [
        (method, "/duet/drain", "Bearer secret") for method in ("PUT", "GET", "DELETE")
    ]
    wanted = {"lease_seconds": 30.0, "reason": "ScaleDown", "worker": "w"}
    assert json.loads(asked[0][3]) | wanted == json.loads(asked[0][3])


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (answering(b"no", 403), "w: PUT /duet/drain answered 403"),
        (answering(b"{}"), "w: DrainStatus: worker"),
        (answering(DrainStatus(worker="its-successor", phase=DrainPhase.DRAINED).write()), "w: its-successor answered"),
        (never, "w: no answer in 0.2 s"),
    ],
)
async def test_an_engine_that_does_not_answer_as_agreed_is_an_error(
    session: aiohttp.ClientSession, handler: Handler, said: str
) -> None:
    async with serving(handler) as port:
        engines = EngineClient(session, timeout_seconds=0.2, credentials=SharedToken("").credentials)
        with pytest.raises(EngineError, match=said):
            await engines.drain(pod("w", port), lease_seconds=30.0, reason="x")


# --- the API server ---


@asynccontextmanager
async def cluster_at(
    port: int, gate: Callable[[], float] = lambda: 60.0, *, timeout_seconds: float = 0.5
) -> AsyncIterator[KubernetesCluster]:
    configuration = client.Configuration(host=f"http://127.0.0.1:{port}")
    async with KubernetesCluster(
        client.ApiClient(configuration=configuration),
        timeout_seconds=timeout_seconds,
        gate=gate,
        on_write=lambda *_: None,
    ) as cluster:
        yield cluster


async def test_a_busy_api_server_is_asked_once_more_after_its_time() -> None:
    answers = iter([429, 200])

    async def busy(_request: web.Request) -> web.Response:
        status = next(answers)
        return web.json_response({"kind": "Pod"}, status=status, headers={"Retry-After": "0"})

    async with serving(busy) as port, cluster_at(port) as cluster:
        assert await cluster.get(POD, "n", "p") == {"kind": "Pod"}
    assert list(answers) == []


async def test_an_api_server_that_stays_busy_is_an_error() -> None:
    async def busy(_request: web.Request) -> web.Response:
        body = {"kind": "Status", "reason": "TooManyRequests", "message": "later"}
        return web.json_response(body, status=429, headers={"Retry-After": "0"})

    async with serving(busy) as port, cluster_at(port) as cluster:
        with pytest.raises(ClusterError, match="GET /api/v1/namespaces/n/pods/p: TooManyRequests: later") as found:
            await cluster.get(POD, "n", "p")
    assert found.value.status == 429


@pytest.mark.parametrize(
    ("handler", "reason"), [(never, "Timeout"), (answering(b"oops", 500), "Internal Server Error")]
)
async def test_errors_are_named(handler: Handler, reason: str) -> None:
    async with serving(handler) as port, cluster_at(port) as cluster:
        with pytest.raises(ClusterError, match=reason):
            await cluster.list(POD, namespace="n")


async def test_conflicts_and_absences_are_told_apart() -> None:
    async with serving(answering(b'{"reason": "Conflict", "message": "changed"}', 409)) as port, cluster_at(port) as it:
        with pytest.raises(ConflictError, match="changed"):
            await it.patch(POD, "n", "p", {})
    async with serving(answering(b"{}", 404)) as port, cluster_at(port) as it:
        assert await it.get(POD, "n", "p") is None
        await it.delete(POD, "n", "p")


async def test_no_write_passes_a_closed_gate() -> None:
    class ClosedError(Exception):
        pass

    def closed() -> float:
        raise ClosedError

    asked: list[str] = []

    async def server(request: web.Request) -> web.Response:
        asked.append(request.method)
        return web.json_response({"spec": {"replicas": 2}, "metadata": {"resourceVersion": "1"}, "items": []})

    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n", "name": "p", "resourceVersion": "1"}}
    async with serving(server) as port, cluster_at(port, closed) as cluster:
        for write in (
            cluster.create(manifest),
            cluster.apply(manifest),
            cluster.replace(manifest),
            cluster.patch(POD, "n", "p", {}),
            cluster.patch_status(POD, "n", "p", {}),
            cluster.patch_scale(POD, "n", "p", expected=2, replicas=1),
            cluster.delete(POD, "n", "p"),
        ):
            with pytest.raises(ClosedError):
                await write
        await cluster.list(POD)
    assert set(asked) == {"GET"}


# --- routing plans ---


async def test_a_plan_is_pushed_when_it_is_new_or_its_lease_is_half_over(session: aiohttp.ClientSession) -> None:
    taken: list[RoutingPlan] = []
    statuses = iter([200, 503, 200, 200])

    async def gateway(request: web.Request) -> web.Response:
        taken.append(RoutingPlan.read(await request.read()))
        return web.Response(status=next(statuses))

    plan = RoutingPlan(generation=3, lease_seconds=30, dispatch_share=0.5)
    other = RoutingPlan(generation=3, lease_seconds=30, dispatch_share=1.0)
    pusher = PlanPusher(session, timeout_seconds=1, credentials=SharedToken("").credentials)
    async with serving(gateway) as port:
        for now, offered, expected in (
            (0.0, plan, 1),
            (5.0, plan, 1),
            (16.0, plan, 2),
            (17.0, plan, 3),
            (18.0, other, 4),
        ):
            await pusher.push([pod("g", port)], offered, now_seconds=now)
            assert len(taken) == expected, now
    assert [each.dispatch_share for each in taken] == [0.5, 0.5, 0.5, 1.0]


async def test_a_gateway_that_is_gone_takes_no_plan_and_harms_nothing(session: aiohttp.ClientSession) -> None:
    async with serving(answering(b"")) as port:
        pass
    plan = RoutingPlan(lease_seconds=30)
    pusher = PlanPusher(session, timeout_seconds=1, credentials=SharedToken("").credentials)
    await pusher.push([pod("g", port)], plan, now_seconds=0.0)


async def test_a_plan_comes_with_one_token_for_all_gateways_and_never_without(session: aiohttp.ClientSession) -> None:
    presented: list[str | None] = []
    asked: list[str] = []

    async def gateway(request: web.Request) -> web.Response:
        presented.append(request.headers.get("Authorization"))
        return web.Response()

    async def credentials(of: Pod) -> dict[str, str]:
        asked.append(of.name)
        if len(asked) > 1:
            raise ClusterError("token", status=403, reason="Forbidden", message="not for you")
        return {"Authorization": "Bearer ours"}

    pusher = PlanPusher(session, timeout_seconds=1, credentials=credentials)
    async with serving(gateway) as port:
        gateways = [pod("g", port), pod("h", port)]
        await pusher.push(gateways, RoutingPlan(lease_seconds=30), now_seconds=0.0)
        await pusher.push(gateways, RoutingPlan(lease_seconds=30), now_seconds=20.0)
    assert (presented, asked) == (["Bearer ours"] * 2, ["g", "g"])


async def test_a_write_is_given_up_when_the_gate_s_time_is_over() -> None:
    """Another operator may hold the Lease after that."""
    async with serving(never) as port, cluster_at(port, lambda: 0.05, timeout_seconds=60.0) as cluster:
        async with asyncio.timeout(20):
            with pytest.raises(ClusterError, match="Timeout"):
                await cluster.patch(POD, "n", "p", {})


async def test_a_write_that_waited_for_room_asks_the_gate_again() -> None:
    """What was allowed when it had to wait may be forbidden when its turn comes."""
    free = asyncio.Event()
    arrived: list[str] = []

    async def held_up(request: web.Request) -> web.Response:
        arrived.append(request.method)
        await free.wait()
        return web.json_response({})

    class ClosedError(Exception):
        pass

    left = [60.0]

    def gate() -> float:
        if left[0] <= 0:
            raise ClosedError
        return left[0]

    async with serving(held_up) as port, cluster_at(port, gate, timeout_seconds=60.0) as cluster:
        readers = [asyncio.create_task(cluster.get(POD, "n", "p")) for _ in range(CONCURRENT_REQUESTS)]
        async with asyncio.timeout(20):
            while len(arrived) < CONCURRENT_REQUESTS:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.01)
        write = asyncio.create_task(cluster.patch(POD, "n", "p", {}))
        await asyncio.sleep(0.05)
        left[0] = 0.0
        free.set()
        with pytest.raises(ClosedError):
            await write
        await asyncio.gather(*readers)
    assert set(arrived) == {"GET"}


async def test_gateways_and_engines_are_changed_only_while_the_gate_is_open() -> None:
    class ClosedError(Exception):
        pass

    def closed() -> float:
        raise ClosedError

    asked: list[str] = []

    async def server(request: web.Request) -> web.Response:
        asked.append(request.method)
        return web.Response(body=b"{}")

    async with serving(server) as port, pod_session(closed) as session:
        engines = EngineClient(session, timeout_seconds=2.0, credentials=SharedToken("").credentials)
        with pytest.raises(ClosedError):
            await engines.drain(pod("w", port), lease_seconds=30.0, reason="x")
        with pytest.raises(EngineError):
            await engines.drain_status(pod("w", port))
    assert asked == ["GET"]


@pytest.mark.parametrize(("keep", "connections"), [(True, 1), (False, 3)])
async def test_connections_to_gateways_are_used_again_and_others_end(*, keep: bool, connections: int) -> None:
    seen: set[object] = set()

    async def answer(request: web.Request) -> web.Response:
        seen.add(request.transport)
        return web.Response(body=document().write())

    async with serving(answer) as port, pod_session(None, keep=keep) as session:
        reader = GatewayReader(session, timeout_seconds=5)
        for _ in range(3):
            assert (await reader.read([pod("a", port)])).documents
    assert len(seen) == connections


async def test_a_kept_connection_that_the_gateway_has_ended_is_no_silence() -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=document().write())

    async with pod_session(None, keep=True) as session:
        reader = GatewayReader(session, timeout_seconds=5)
        async with serving(answer) as port:
            assert (await reader.read([pod("a", port)])).documents
        async with serving(answer, port=port):
            assert not (await reader.read([pod("a", port)])).failures
