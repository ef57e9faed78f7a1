"""The kubelet's own port: what the API server asks a node for on behalf of kubectl."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from duet_dev.kubelet import certificate
from duet_dev.kubelet.context import HOST_ADDRESS, Context
from duet_dev.kubelet.execution import Execution
from duet_dev.kubelet.logs import Logs
from duet_dev.kubelet.peers import own_user_only
from duet_dev.kubelet.pods import Pods
from duet_dev.kubelet.port_forward import PortForward


@contextlib.asynccontextmanager
async def serving(*, pods: Pods, context: Context) -> AsyncIterator[int]:
    """Serve on a free loopback port while the block runs; its number."""
    application = web.Application(middlewares=[own_user_only])
    logs, execution = Logs(pods=pods, context=context), Execution(pods)
    container = "{namespace}/{pod}/{container}"
    application.router.add_get(f"/containerLogs/{container}", logs.handle)
    application.router.add_route("*", f"/exec/{container}", execution.handle)
    application.router.add_route("*", "/portForward/{namespace}/{pod}", PortForward(pods).handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST_ADDRESS, 0, ssl_context=certificate.server_context(context.root))
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
