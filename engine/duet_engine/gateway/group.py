"""The processes of one pod, each of which can speak for all: they share the ports, and ask each other here.

Invariant: a question is answered for all processes or, when one of them doesn't answer, not at all: a total that misses
a part would look like a load that went away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic

import aiohttp
from aiohttp import web

from duet_engine.gateway.plan import PlanHolder
from duet_engine.gateway.processes import Membership
from duet_engine.gateway.report import ProcessReport, together
from duet_engine.protocol import RoutingPlan

REPORT_PATH, PLAN_PATH, READY_PATH = "/report", "/plan", "/ready"
_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


class GroupError(Exception):
    """A process of this pod doesn't answer; the message says which."""


class Group:
    """This process's view of its siblings, and what it tells them."""

    def __init__(
        self,
        membership: Membership,
        *,
        instance_id: str,
        own_report: Callable[[], ProcessReport],
        plan: PlanHolder,
        unready_reason: Callable[[], str | None],
    ) -> None:
        self.instance_id = instance_id
        self._membership = membership
        self._own_report = own_report
        self._plan = plan
        self._own_unready_reason = unready_reason
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Answer siblings from now on."""
        if self._membership.count == 1:
            return
        app = web.Application()
        app.router.add_get(REPORT_PATH, self._get_report)
        app.router.add_put(PLAN_PATH, self._put_plan)
        app.router.add_get(READY_PATH, self._get_ready)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.UnixSite(self._runner, self._membership.socket(self._membership.index)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def report(self) -> ProcessReport:
        """Of the whole pod.

        Raises:
            GroupError: a process doesn't answer.
        """
        answers = await self._ask_others("GET", REPORT_PATH)
        return together([self._own_report(), *(ProcessReport.read(answer) for answer in answers)])

    async def take_plan(self, offered: RoutingPlan) -> RoutingPlan:
        """Offer a plan to all processes; returns the one in force here.

        Raises:
            GroupError: a process doesn't answer.
        """
        await self._ask_others("PUT", PLAN_PATH, offered.write())
        return self._plan.take(offered, monotonic())

    async def unready_reason(self) -> str | None:
        """Ready is who accepts with every process: any of them may get the next connection."""
        own = self._own_unready_reason()
        if own is not None:
            return own
        try:
            reasons = await self._ask_others("GET", READY_PATH)
        except GroupError as error:
            return str(error)
        return next((reason.decode() for reason in reasons if reason), None)

    async def _ask_others(self, method: str, path: str, body: bytes | None = None) -> list[bytes]:
        return await asyncio.gather(*(self._ask(index, method, path, body) for index in self._membership.others()))

    async def _ask(self, index: int, method: str, path: str, body: bytes | None) -> bytes:
        connector = aiohttp.UnixConnector(str(self._membership.socket(index)))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
                session.request(method, f"http://sibling{path}", data=body) as response,
            ):
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            raise GroupError(f"process {index} of this gateway doesn't answer: {said}") from error
        if response.status != HTTPStatus.OK:
            raise GroupError(f"process {index} of this gateway answered {response.status}")
        return content

    async def _get_report(self, _: web.Request) -> web.Response:
        return web.Response(body=self._own_report().write())

    async def _put_plan(self, http: web.Request) -> web.Response:
        self._plan.take(RoutingPlan.read(await http.read()), monotonic())
        return web.Response()

    async def _get_ready(self, _: web.Request) -> web.Response:
        return web.Response(text=self._own_unready_reason() or "")
