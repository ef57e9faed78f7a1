"""`/healthz` and `/metrics` of the operator.

Invariant: unhealthy means that a restart may help: objects wait for a pass and none ended for a long time. An API
server that can't be reached, or a Lease that another operator holds, is no reason to restart.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from duet_operator.metrics import Metrics
    from duet_operator.world import World

SILENCE_SECONDS = 400.0
"""Longer than the longest interval of an object and the longest pass."""


def application(*, metrics: Metrics, world: World, leading: Callable[[], bool]) -> web.Application:
    """The two pages."""

    async def health(_request: web.Request) -> web.Response:
        age = metrics.last_pass_age_seconds
        objects = len(world.duets())
        healthy = not (leading() and objects and age is not None and age > SILENCE_SECONDS)
        report = {
            "healthy": healthy,
            "leading": leading(),
            "objects": objects,
            "lastPassAgeSeconds": None if age is None else round(age, 3),
        }
        return web.json_response(report, status=200 if healthy else 503)

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes([web.get("/healthz", health), web.get("/metrics", exposition)])
    return app


@asynccontextmanager
async def serving(app: web.Application, *, host: str, port: int) -> AsyncIterator[int]:
    """Serves while the context lasts; yields the port."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
