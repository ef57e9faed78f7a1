"""The port for operator, probes and monitoring: demand, plan, metrics, health.

Invariant: it answers for all processes of the pod, whichever is asked. Reading changes nothing but the document's
sequence number; what changes more must be proven (`admin_guard`).
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from duet_engine.gateway.admin_guard import admin_guard
from duet_engine.gateway.group import Group, GroupError
from duet_engine.gateway.metrics import GatewayCollector
from duet_engine.gateway.plan import PlanHolder
from duet_engine.gateway.report import ProcessReport
from duet_engine.protocol import DEMAND_PATH, PLAN_PATH, PlanApplied, ProtocolError, RoutingPlan

_JSON = "application/json"


class AdminServer:
    """Handlers of the admin port."""

    def __init__(self, group: Group, *, plan: PlanHolder, trust_file: Path | None = None) -> None:
        self._guard = admin_guard(trust_file)
        self._group = group
        self._plan = plan

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get(DEMAND_PATH, self._get_demand)
        app.router.add_get(PLAN_PATH, self._get_plan)
        app.router.add_put(PLAN_PATH, self._put_plan)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._ready)
        return app

    async def _report(self) -> ProcessReport:
        try:
            return await self._group.report()
        except GroupError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error

    async def _get_demand(self, _: web.Request) -> web.Response:
        return web.Response(body=(await self._report()).demand.write(), content_type=_JSON)

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
        try:
            plan = await self._group.take_plan(offered)
        except GroupError as error:
            return web.json_response({"error": str(error)}, status=503)
        applied = PlanApplied(
            instance_id=self._group.instance_id,
            generation=plan.generation,
            lease_remaining_seconds=self._plan.remaining_seconds(monotonic()),
        )
        return web.Response(body=applied.write(), content_type=_JSON)

    async def _metrics(self, _: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(GatewayCollector(await self._report()))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _ready(self, _: web.Request) -> web.Response:
        reason = await self._group.unready_reason()
        return web.Response(status=503, text=reason) if reason else web.Response(text="ready")
