"""One gateway process: its parts, wired, and its life from start to graceful end.

Invariant: it says ready only while it should get new connections; from SIGTERM on it answers everything that it
accepts, tells clients to close, and ends when the last answer has been sent or the grace period is over. When a part
of it stops, all of it does, in the same way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from time import monotonic
from typing import Any

import aiohttp
from aiohttp import web

from duet_engine.gateway.admin import AdminServer
from duet_engine.gateway.callers import Callers
from duet_engine.gateway.demand import Demand
from duet_engine.gateway.discovery import Discovery
from duet_engine.gateway.gate import Gate
from duet_engine.gateway.group import Group
from duet_engine.gateway.inference import Inference
from duet_engine.gateway.knobs import KnobPusher
from duet_engine.gateway.live_settings import LiveSettings, live_settings
from duet_engine.gateway.loop_lag import LoopLag
from duet_engine.gateway.plan import PlanHolder
from duet_engine.gateway.relay import Relay
from duet_engine.gateway.reporter import Reporter
from duet_engine.gateway.routing import Dispatcher
from duet_engine.gateway.server import PublicServer
from duet_engine.gateway.settings import Settings, SettingsError
from duet_engine.gateway.state_stream import listen
from duet_engine.gateway.tls import ServerTls
from duet_engine.gateway.tokens import TokenEstimator
from duet_engine.gateway.tracing import tracer
from duet_engine.gateway.upstream import Upstream
from duet_engine.gateway.wire.listener import Listener
from duet_engine.gateway.workers import Workers
from duet_engine.mounted_files import presented

log = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75.0


class Gateway:
    """Everything of one process, on the running loop."""

    def __init__(self, settings: Settings, *, session: aiohttp.ClientSession, initial: LiveSettings) -> None:
        self._settings = settings
        self._live = initial
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[str, asyncio.Task[None]] = {}
        self._unknown = {"workers"}
        """What hasn't been listed yet."""
        self.broken = asyncio.Event()
        """A part stopped that must not: what is known of the fleet is frozen from now on."""
        self._draining = False
        self._loop = asyncio.get_running_loop()
        instance_id = secrets.token_hex(8)
        self.workers = Workers(instance_id)
        self._plan = PlanHolder()
        self._lag = LoopLag()
        self._demand = Demand()
        self._credentials = _credentials(settings)
        self._knobs = KnobPusher(session, self._live_now, credentials=self._credentials)
        self._gate = Gate(
            plan=self._plan,
            live=self._live_now,
            demand=self._demand,
            workers=self.workers,
            processes=settings.membership.count,
        )
        self._dispatcher = self._made_dispatcher()
        self._upstream = Upstream(
            limits=settings.limits,
            gateway_id=instance_id,
            changed=self._dispatcher.wake,
            credentials=self._credentials,
        )
        self._tokens = TokenEstimator()
        self._tracer = tracer(session, os.environ, instance=instance_id)
        callers, self._tls = _callers(settings, self._live_now), _tls(settings)
        self._inference = self._made_inference(callers)
        self._listener = self._made_listener(callers)
        self._group = Group(
            settings.membership,
            instance_id=instance_id,
            own_report=self._made_reporter(instance_id).report,
            plan=self._plan,
            unready_reason=self._unready_reason,
        )
        self._admin = AdminServer(self._group, plan=self._plan, trust_file=settings.trust_file)
        self._admin_runner: web.AppRunner | None = None

    def _made_dispatcher(self) -> Dispatcher:
        dispatcher = Dispatcher(
            self.workers,
            live=self._live_now,
            limits=self._settings.limits,
            window_seconds=self._window_seconds,
            gate=self._gate.current,
            processes=self._settings.membership.count,
        )
        self._gate.waiting = dispatcher.waiting_by_class
        return dispatcher

    def _made_inference(self, callers: Callers) -> Inference:
        limits = self._settings.limits
        return Inference(
            Relay(self._upstream, self._dispatcher, limits),
            callers=callers,
            demand=self._demand,
            tokens=self._tokens,
            lag=self._lag,
            limits=limits,
            live=self._live_now,
            tracer=self._tracer,
        )

    def _made_listener(self, callers: Callers) -> Listener:
        public = PublicServer(
            self._inference, callers=callers, live=self._live_now, unready_reason=self._unready_reason
        )
        limits = self._settings.limits
        return Listener(public.handle, check=public.check, limits=limits, draining=lambda: self._draining)

    def _made_reporter(self, instance_id: str) -> Reporter:
        return Reporter(
            name=self._settings.name,
            instance_id=instance_id,
            demand=self._demand,
            dispatcher=self._dispatcher,
            workers=self.workers,
            lag=self._lag,
            tokens=self._tokens,
            inference=self._inference,
            accept_waits=self._listener.accept_waits,
            live=self._live_now,
        )

    async def start(
        self, discovery: Discovery, objects: AsyncIterator[Mapping[str, dict[str, Any]]] | None = None
    ) -> None:
        """Listen on both ports and follow the sources."""
        self._lag.start()
        self._spawn(self._follow_members(discovery))
        self._spawn(self._gate.run())
        if objects is not None:
            self._unknown.add("DuetDeployment")
            self._spawn(self._follow_settings(objects))
        settings, shared = self._settings, self._settings.membership.count > 1
        await self._group.start()
        await self._serve_admin(settings.admin_host, settings.admin_port, shared=shared)
        tls = self._tls.context if self._tls is not None else None
        port = await self._listener.start(settings.host, settings.port, tls=tls, shared=shared)
        if self._tls is not None:
            self._spawn(self._tls.follow())
        if self._tracer is not None:
            self._spawn(self._tracer.run())
        log.info("serving on %s:%d, admin on %s:%d", settings.host, port, settings.admin_host, settings.admin_port)

    async def stop(self) -> None:
        """Leave the load balancers, finish what was accepted, end."""
        self._draining = True
        log.info("draining: unready now, accepting for %g s more", self._settings.propagation_seconds)
        await asyncio.sleep(self._settings.propagation_seconds)
        self._listener.close()
        if not await self._listener.drained(self._settings.grace_seconds):
            log.warning("grace period over with %d requests in flight", self._inference.inflight)
        if self._admin_runner is not None:
            await self._admin_runner.cleanup()
        await self._group.stop()
        await self._upstream.close()
        if self._tracer is not None:
            await self._tracer.flush()
        self._lag.stop()
        for task in [*self._tasks, *self._listeners.values()]:
            task.cancel()

    def _live_now(self) -> LiveSettings:
        return self._live

    def _window_seconds(self) -> float:
        plan = self._plan.current(monotonic())
        share = plan.dispatch_share if plan else 1.0
        return self._settings.limits.window_seconds * share / self._settings.membership.count

    def _unready_reason(self) -> str | None:
        if self._draining:
            return "draining"
        if self.broken.is_set():
            return "a part of the gateway stopped"
        return f"not known yet: {', '.join(sorted(self._unknown))}" if self._unknown else None

    async def _serve_admin(self, host: str, port: int, *, shared: bool) -> None:
        runner = web.AppRunner(
            self._admin.application(),
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            shutdown_timeout=1.0,
            handle_signals=False,
        )
        await runner.setup()
        self._admin_runner = runner
        await web.TCPSite(runner, host, port, backlog=1024, reuse_port=shared or None).start()

    async def _follow_members(self, discovery: Discovery) -> None:
        async for members in discovery.members():
            come, gone = self.workers.update(members)
            for worker in gone:
                self._listeners.pop(worker.key).cancel()
                worker.lost()
                self._upstream.forget(worker)
                self._dispatcher.forget(worker)
            for worker in come:
                listener = self._loop.create_task(
                    listen(
                        worker,
                        self._session,
                        knobs=self._knobs,
                        heard=self._dispatcher.heard,
                        changed=self._dispatcher.wake,
                        credentials=self._credentials,
                    )
                )
                listener.add_done_callback(self._ended)
                self._listeners[worker.key] = listener
            if come or gone:
                log.info("workers: %s", ", ".join(sorted(worker.name for worker in self.workers)) or "none")
            self._unknown.discard("workers")
            self._dispatcher.wake()

    async def _follow_settings(self, objects: AsyncIterator[Mapping[str, dict[str, Any]]]) -> None:
        async for snapshot in objects:
            self._unknown.discard("DuetDeployment")
            for item in snapshot.values():
                generation = item["metadata"].get("generation", 0)
                if generation != self._live.generation:
                    self._live = live_settings(item.get("spec") or {}, generation=generation)
                    log.info("live settings of generation %d in force", generation)
                    self._dispatcher.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            log.critical("a part of the gateway stopped", exc_info=task.exception())
            self.broken.set()


def _credentials(settings: Settings) -> Callable[[], dict[str, str]]:
    try:
        return presented(settings.engine_token_file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--engine-token-file: {settings.engine_token_file}: {error}") from error


def _callers(settings: Settings, live: Callable[[], LiveSettings]) -> Callers:
    try:
        return Callers(settings.api_keys_folder, live)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--api-keys-folder: {settings.api_keys_folder}: {error}") from error


def _tls(settings: Settings) -> ServerTls | None:
    try:
        return ServerTls(settings.tls_folder) if settings.tls_folder is not None else None
    except OSError as error:
        raise SettingsError(f"--tls-folder: {settings.tls_folder}: {error}") from error
