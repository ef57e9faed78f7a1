"""The port for operator, probes and monitoring: demand, plan, metrics, health.

Invariant: reading changes nothing but the document's sequence number; what changes more must be proven (`admin_guard`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from duet_engine.gateway.admin_guard import admin_guard
from duet_engine.gateway.demand import Demand
from duet_engine.gateway.inference import Inference
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.gateway.metrics import GatewayCollector
from duet_engine.gateway.plan import PlanHolder
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.gateway.workers import Workers
from duet_engine.protocol import DEMAND_PATH, PLAN_PATH, GatewayDemand, PlanApplied, ProtocolError, RoutingPlan

_JSON = "application/json"


class AdminServer:
    """Handlers of the admin port, and the assembly of the demand document."""

    def __init__(
        self,
        *,
        name: str,
        instance_id: str,
        demand: Demand,
        dispatcher: Dispatcher,
        workers: Workers,
        lag: LoopLag,
        tokens: TokenEstimator,
        plan: PlanHolder,
        inference: Inference,
        live: Callable[[], LiveSettings],
        unready_reason: Callable[[], str | None],
        trust_file: Path | None = None,
    ) -> None:
        self._guard = admin_guard(trust_file)
        self._name = name
        self._instance_id = instance_id
        self._demand = demand
        self._dispatcher = dispatcher
        self._workers = workers
        self._lag = lag
        self._plan = plan
        self._inference = inference
        self._live = live
        self._unready_reason = unready_reason
        self._sequence = 0
        self._started_at_seconds = time.time()
        self._registry = CollectorRegistry()
        self._registry.register(
            GatewayCollector(demand=demand, dispatcher=dispatcher, workers=workers, lag=lag, tokens=tokens)
        )

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get(DEMAND_PATH, self._get_demand)
        app.router.add_get(PLAN_PATH, self._get_plan)
        app.router.add_put(PLAN_PATH, self._put_plan)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._ready)
        return app

    def document(self) -> GatewayDemand:
        """What users asked for and got so far."""
        now = monotonic()
        self._sequence += 1
        workers = tuple(self._workers)
        profiles = {worker.profile.digest: worker.profile for worker in workers if worker.profile is not None}
        lag_seconds = self._lag.p99_seconds()
        return GatewayDemand(
            instance_id=self._instance_id,
            sequence=self._sequence,
            written_at_seconds=time.time(),
            gateway=self._name,
            started_at_seconds=self._started_at_seconds,
            generation=self._live().generation,
            waiting_requests=self._dispatcher.waiting_requests,
            waiting_tokens=self._dispatcher.waiting_tokens,
            inflight_requests=self._inference.inflight,
            loop_lag_p99_seconds=lag_seconds,
            loop_lag_seconds=self._lag.total.document(),
            saturated=self._lag.saturated,
            classes=self._demand.documents(),
            workers=tuple(worker.report(now) for worker in workers),
            profiles=tuple(profiles.values()),
        )

    async def _get_demand(self, _: web.Request) -> web.Response:
        return web.Response(body=self.document().write(), content_type=_JSON)

    async def _get_plan(self, _: web.Request) -> web.Response:
        plan = self._plan.current(monotonic())
        if plan is None:
            return web.json_response({"error": "no plan in force"}, status=404)
        return web.Response(body=plan.write(), content_type=_JSON)

    async def _put_plan(self, http: web.Request) -> web.Response:
        try:
            offered = RoutingPlan.read(await http.read())
        except ProtocolError as error:
            return web.json_response({"error": str(error)}, status=400)
        now = monotonic()
        plan = self._plan.take(offered, now)
        applied = PlanApplied(
            instance_id=self._instance_id,
            generation=plan.generation,
            lease_remaining_seconds=self._plan.remaining_seconds(now),
        )
        return web.Response(body=applied.write(), content_type=_JSON)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _ready(self, _: web.Request) -> web.Response:
        reason = self._unready_reason()
        return web.Response(status=503, text=reason) if reason else web.Response(text="ready")
