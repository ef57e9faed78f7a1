"""The operator as a process: runs its parts, and ends them in order.

Invariant: what starts here ends here, in the reverse order: passes, memories, watches, Lease, connections. Nothing acts
before the Lease is held, and nothing writes after it's lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import kopf

from duet_operator import handlers, web
from duet_operator.assembly import ClusterLeaseStore, pod_session, services
from duet_operator.cluster import DUET, FIELD_MANAGER, NODE, ClusterError
from duet_operator.kubernetes_cluster import KubernetesCluster, connect
from duet_operator.lease import LeaseGate, LeaseLostError
from duet_operator.loop import ControlLoop
from duet_operator.metrics import Metrics
from duet_operator.nodes import Nodes
from duet_operator.world import World

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from duet_operator.settings import Settings

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
KOPF_EXIT_SECONDS = 5.0


async def run(settings: Settings, *, kubeconfig: str | None = None) -> None:
    """The operator, until SIGTERM or SIGINT.

    Raises:
        LeaseLostError: where another operator has taken over, or nobody can tell.
        ClusterError: where this process can't find its cluster.
    """
    instance = f"{settings.identity or socket.gethostname()}-{secrets.token_hex(4)}"
    metrics, world, nodes = Metrics(), World(field_manager=FIELD_MANAGER), Nodes()
    async with AsyncExitStack() as stack:
        seconds = settings.request_timeout_seconds
        connection = await connect(kubeconfig=kubeconfig, timeout_seconds=seconds, on_write=metrics.write)
        direct = await stack.enter_async_context(connection)
        store = ClusterLeaseStore(direct, namespace=settings.namespace, name=settings.lease_name)
        gate = LeaseGate(store, identity=instance, lease_seconds=settings.lease_seconds)
        check = gate.check if settings.lease_enabled else None
        cluster = direct if check is None else direct.gated(check)
        engine_session = await stack.enter_async_context(pod_session(check))
        gateway_session = await stack.enter_async_context(pod_session(check, keep=True))
        loop = ControlLoop(
            cluster=cluster,
            services=services(
                settings,
                cluster=cluster,
                engine_session=engine_session,
                gateway_session=gateway_session,
                world=world,
                nodes=nodes,
                metrics=metrics,
                instance=instance,
            ),
        )
        app = web.application(metrics=metrics, world=world, leading=loop.synchronised.is_set)
        port = await stack.enter_async_context(web.serving(app, host=settings.http_host, port=settings.http_port))
        logger.info("%s serves /healthz and /metrics on %s:%d", instance, settings.http_host, port)
        process = Process(
            settings, gate=gate, loop=loop, world=world, nodes=nodes, cluster=cluster, kubeconfig=kubeconfig
        )
        await process.run()


class Process:
    """The order of starting and ending."""

    def __init__(
        self,
        settings: Settings,
        *,
        gate: LeaseGate,
        loop: ControlLoop,
        world: World,
        nodes: Nodes,
        cluster: KubernetesCluster,
        kubeconfig: str | None,
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._loop = loop
        self._world = world
        self._nodes = nodes
        self._cluster = cluster
        self._kubeconfig = kubeconfig
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until a signal, or until something that must not end does."""
        self._take_signals()
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        lease = [asyncio.create_task(self._gate.run(), name="lease")] if self._settings.lease_enabled else []
        try:
            if self._settings.lease_enabled and not await self._before(self._gate.held.wait(), stopped, *lease):
                return
            if not await self._before(self._wait_for_definition(), stopped, *lease):
                return
            await self._act(stopped, *lease)
        finally:
            await _cancel(stopped, *lease)
            await self._gate.release()

    async def _act(self, *enders: asyncio.Task[Any]) -> None:
        """Watches and the control loop, until one of `enders` or of themselves is done."""
        kopf_stop, kopf_ready = asyncio.Event(), asyncio.Event()
        watches = asyncio.create_task(self._watch(kopf_stop, kopf_ready), name="watches")
        passes: asyncio.Task[None] | None = None
        try:
            if not await self._before(kopf_ready.wait(), watches, *enders):
                return
            # Kopf has put its own handlers in place; the order of ending is decided here.
            self._take_signals()
            passes = asyncio.create_task(self._loop.run(), name="passes")
            await _first(passes, watches, *enders)
        finally:
            if passes is not None:
                await _cancel(passes)
                await self._save()
            kopf_stop.set()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(watches, KOPF_EXIT_SECONDS)

    async def _save(self) -> None:
        """Keep all memories, where this process may still write."""
        try:
            if self._settings.lease_enabled:
                self._gate.check()
        except LeaseLostError as error:
            logger.warning("memories aren't saved: %s", error)
        else:
            await self._loop.save_all()

    async def _watch(self, stop: asyncio.Event, ready: asyncio.Event) -> None:
        namespaces = self._settings.namespaces
        nodes = self._nodes if await self._may_watch_nodes() else None
        await kopf.operator(
            registry=handlers.registry(
                self._world, nodes=nodes, on_listing=self._loop.list_soon, kubeconfig=self._kubeconfig
            ),
            settings=handlers.settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
            ready_flag=ready,
        )

    async def _may_watch_nodes(self) -> bool:
        """Whether its rights are wide enough: a watch without them would fail again and again.

        Known before the first pass, which would take back successors whose predecessors' nodes it knows nothing of.
        """
        while True:
            try:
                async for page in self._cluster.pages(NODE):
                    for node in page.items:
                        self._nodes.put(node)
            except ClusterError as error:
                if error.status == HTTPStatus.FORBIDDEN:
                    logger.info("nodes may not be watched: workers aren't moved off nodes that are about to go")
                    return False
                logger.warning("waiting until nodes can be read: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return True

    async def _wait_for_definition(self) -> None:
        """Until the API server serves DuetDeployments and lets us read them: watches that begin sooner stay blind."""
        namespaces = self._settings.namespaces or (None,)
        while True:
            try:
                for namespace in namespaces:
                    await self._cluster.document(f"{DUET.path(namespace)}?limit=1")
            except ClusterError as error:
                logger.warning("waiting until DuetDeployments can be read: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _before(self, awaited: Coroutine[Any, Any, object], *enders: asyncio.Task[Any]) -> bool:
        """True when `awaited` was done before any of `enders`, whose error is raised."""
        task = asyncio.ensure_future(awaited)
        try:
            await _first(task, *enders)
            return task.done()
        finally:
            await _cancel(task)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Until one is done; its error is raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """End them; errors were raised where they mattered."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
