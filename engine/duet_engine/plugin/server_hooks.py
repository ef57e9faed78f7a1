"""The frame's hooks in the server process: its start, its warm-up, its metrics, and the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from duet_engine.plugin.hooks import Hook, Kind, Process
from duet_engine.plugin.server_side import ServerSide

SEND_WARM_UP = "entrypoints.http_server._send_disaggregation_warmup_requests"

log = logging.getLogger(__name__)


def hooks(side: ServerSide) -> tuple[Hook, ...]:
    """All of them, for this process's worker."""
    warm_up = side.warm_up

    def global_state_set(_: None, global_state: Any) -> None:  # noqa: ANN401
        side.started(global_state)

    def told_to_end(_: None, handler: Any, *__: Any, **___: Any) -> None:  # noqa: ANN401
        side.drain.terminate()
        close_streams_first(side, handler.tokenizer_manager)
        timeout = side.settings.drain_timeout_seconds
        log.warning("draining: %d requests are left, and %.0f s for them", side.work().total, timeout)
        asyncio.get_running_loop().call_later(timeout, give_up, side, handler.tokenizer_manager)

    def about_to_listen(*_: Any) -> None:  # noqa: ANN401
        wrap_application(side)

    return (
        _hook("utils.common.set_uvicorn_logging_configs", "7d78d99eb1ff", about_to_listen, Kind.BEFORE),
        _hook("entrypoints.http_server.set_global_state", "f087857eb603", global_state_set, Kind.AFTER),
        _hook("entrypoints.http_server._wait_and_warmup", "1481066cf153", warm_up.run, Kind.AROUND),
        _hook(SEND_WARM_UP, "353113f88eca", warm_up.send, Kind.AROUND),
        _hook("utils.common.add_prometheus_middleware", "1a30dde8e153", metrics_with(side), Kind.REPLACE),
        _hook("managers.tokenizer_manager.SignalHandler.sigterm_handler", "0a4aac4977e1", told_to_end, Kind.AFTER),
    )


def close_streams_first(side: ServerSide, tokenizer_manager: Any) -> None:  # noqa: ANN401
    """Before SGLang stops its HTTP server: that waits for open answers, and a stream of states never ends by itself."""
    stop = tokenizer_manager._server_stop_hook
    if stop is None or side.closing:
        return

    def close_and_stop() -> None:
        side.closing = True
        stop()

    tokenizer_manager.set_server_stop_hook(close_and_stop)


def wrap_application(side: ServerSide) -> None:
    """Stand before SGLang's application, and before its own check of an API key: nobody else adds anything later."""
    from sglang.srt.entrypoints import http_server

    from duet_engine.plugin import modules
    from duet_engine.plugin.asgi import DuetApplication
    from duet_engine.plugin.endpoints import DuetEndpoints

    watchers = [module.server_module(side) for module in modules.loaded() if module.server_module is not None]
    http_server.app.add_middleware(DuetApplication, side=side, endpoints=DuetEndpoints(side).routes(), modules=watchers)


def give_up(side: ServerSide, tokenizer_manager: Any) -> None:  # noqa: ANN401
    """The drain's time is up: what is left gets an error rather than a cut connection."""
    left = side.work().total
    if left:
        log.error("%d requests failed at the drain timeout", left)
        tokenizer_manager.abort_request(abort_all=True)


def metrics_with(side: ServerSide) -> Callable[[Any], None]:
    """SGLang's `/metrics` with ours beside its own: the same few lines and one more collector."""

    def add_prometheus_middleware(app: Any) -> None:  # noqa: ANN401
        import re

        from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess
        from starlette.routing import Mount

        from duet_engine.plugin.metrics import DuetCollector

        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(DuetCollector(side))
        route = Mount("/metrics", make_asgi_app(registry=registry))
        # Otherwise /metrics is answered with a redirect to /metrics/.
        route.path_regex = re.compile("^/metrics(?P<path>.*)$")
        app.routes.append(route)

    return add_prometheus_middleware


def _hook(target: str, digest: str, function: Callable[..., Any], kind: Kind) -> Hook:
    return Hook(target=target, digest=digest, function=function, kind=kind, process=Process.SERVER)
