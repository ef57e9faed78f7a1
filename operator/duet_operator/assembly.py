"""The operator's parts, put together.

Invariant: nothing here begins to run; what an attribute of one part means to another is decided here and nowhere else.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp

from duet_operator.acting import Children
from duet_operator.cluster import LEASE
from duet_operator.controller import Services
from duet_operator.drain_executor import DrainExecutor
from duet_operator.engine_knobs import KnobPusher
from duet_operator.engines import EngineClient
from duet_operator.planner.plan import plan
from duet_operator.plans import PlanPusher
from duet_operator.reporting import Reporter
from duet_operator.scaling import PoolScaler
from duet_operator.signals.gateways import GatewayReader
from duet_operator.trust import IssuerWatch, PodTokens, SharedToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from duet_operator.kubernetes_cluster import KubernetesCluster
    from duet_operator.metrics import Metrics
    from duet_operator.nodes import Nodes
    from duet_operator.pods import Credentials
    from duet_operator.settings import Settings
    from duet_operator.world import World


class ClusterLeaseStore:
    """The Lease as an object of the cluster."""

    def __init__(self, cluster: KubernetesCluster, *, namespace: str, name: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name

    async def read(self) -> dict[str, Any] | None:
        return await self._cluster.get(LEASE, self._namespace, self._name)

    async def write(self, spec: dict[str, Any], *, over: dict[str, Any] | None) -> dict[str, Any]:
        metadata = {"name": self._name, "namespace": self._namespace}
        manifest = {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec}
        if over is None:
            return await self._cluster.create(manifest)
        version = over["metadata"]["resourceVersion"]
        return await self._cluster.replace({**manifest, "metadata": {**metadata, "resourceVersion": version}})


def _now() -> datetime:
    return datetime.now(UTC)


def services(
    settings: Settings,
    *,
    cluster: KubernetesCluster,
    engine_session: aiohttp.ClientSession,
    gateway_session: aiohttp.ClientSession,
    world: World,
    nodes: Nodes,
    metrics: Metrics,
    instance: str,
) -> Services:
    """Everything that passes work with."""

    credentials, timeout_seconds = _credentials(settings, cluster), settings.scrape_timeout_seconds
    engines = EngineClient(engine_session, timeout_seconds=timeout_seconds, credentials=credentials)
    drains = DrainExecutor(cluster=cluster, world=world, engines=engines, metrics=metrics, now=_now)
    return Services(
        world=world,
        nodes=nodes,
        settings=settings,
        reader=GatewayReader(gateway_session, timeout_seconds=timeout_seconds),
        knobs=KnobPusher(engines),
        plans=PlanPusher(gateway_session, timeout_seconds=timeout_seconds, credentials=credentials),
        children=Children(cluster=cluster, world=world),
        scaler=PoolScaler(drains=drains),
        reporter=_reporter(settings, cluster=cluster, world=world, metrics=metrics, instance=instance),
        metrics=metrics,
        issuers=IssuerWatch(cluster, metrics=metrics),
        planner=plan,
        now=_now,
    )


def _reporter(
    settings: Settings, *, cluster: KubernetesCluster, world: World, metrics: Metrics, instance: str
) -> Reporter:
    return Reporter(
        cluster=cluster,
        world=world,
        metrics=metrics,
        instance=instance,
        refresh_seconds=settings.status_refresh_seconds,
        writes_per_second=settings.status_writes_per_second,
        now=_now,
    )


KEPT_SECONDS = 60.0
"""How long a connection to a gateway may rest: less than the 75 s after which the gateway itself ends it."""


def pod_session(gate: Callable[[], float] | None, *, keep: bool = False) -> aiohttp.ClientSession:
    """Speaks with gateways and engines; what changes anything there passes the gate too.

    `keep` uses connections again, which halves what a question costs.
    """

    async def check(_session: object, _context: object, request: aiohttp.TraceRequestStartParams) -> None:
        if gate is not None and request.method != "GET":
            gate()

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(check)
    # No limit: one that silent gateways use up would make the others' answers late. Kept ones aren't for engines, which
    # are asked seldom, and wait for whoever is connected when they end; gateways close what rests.
    connector = aiohttp.TCPConnector(
        limit=0, **({"keepalive_timeout": KEPT_SECONDS} if keep else {"force_close": True})
    )
    return aiohttp.ClientSession(connector=connector, trace_configs=[trace])


def _credentials(settings: Settings, cluster: KubernetesCluster) -> Credentials:
    """How engines and gateways know the operator: by its account, unless a file says otherwise."""
    if settings.engine_token_path or not settings.service_account:
        return SharedToken(settings.engine_token_path).credentials
    tokens = PodTokens(
        cluster,
        namespace=settings.namespace,
        account=settings.service_account,
        now_seconds=lambda: _now().timestamp(),
    )
    return tokens.credentials
