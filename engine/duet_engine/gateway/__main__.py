"""Command line of the gateway."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import click
import uvloop

from duet_engine.gateway.app import Gateway
from duet_engine.gateway.discovery import PodDiscovery, StaticDiscovery, pod_selector
from duet_engine.gateway.kubernetes_watch import ObjectWatch, cluster_access
from duet_engine.gateway.live_settings import LiveSettings, live_settings
from duet_engine.gateway.processes import Membership, end_with_the_group, membership, run_group
from duet_engine.gateway.settings import Limits, Settings, SettingsError, StaticConfig, read_static_config
from duet_engine.gateway.wire.pool import IDLE_SECONDS
from duet_engine.protocol import GATEWAY_ADMIN_PORT, GATEWAY_PORT

_OBJECTS_PATH = "/apis/duetserve.io/v1alpha1/namespaces/{namespace}/duetdeployments"
_PODS_PATH = "/api/v1/namespaces/{namespace}/pods"
_DEFAULTS = Limits()
_GARBAGE_THRESHOLDS = (10_000, 20, 50)


@click.command(context_settings={"show_default": True})
@click.option("--namespace", help="Namespace of the DuetDeployment.")
@click.option("--name", help="Name of the DuetDeployment whose engines it serves.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Serve the workers of this YAML or JSON file, without Kubernetes.",
)
@click.option(
    "--engine-token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="DUET_ENGINE_TOKEN_FILE",
    help="Token that engines ask for, read again when it is replaced; default: none is sent.",
)
@click.option(
    "--trust-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="DUET_TRUST_FILE",
    help="Who may give plans through the admin port, read again when it is replaced; default: everybody.",
)
@click.option(
    "--api-keys-folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Files with lines `sha256:HEX [CLASS]`, read again when they change; default: nobody needs a key.",
)
@click.option(
    "--tls-folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="tls.crt and tls.key of the public port, read again when they change; default: plain HTTP.",
)
@click.option("--host", default=None, help="Address of the public port; default: $POD_IP, else loopback.")
@click.option("--port", default=GATEWAY_PORT)
@click.option("--admin-host", default=None, help="Address of the admin port; default: --host.")
@click.option("--admin-port", default=GATEWAY_ADMIN_PORT)
@click.option(
    "--processes",
    default=1,
    type=click.IntRange(min=1, max=64),
    envvar="DUET_GATEWAY_PROCESSES",
    show_envvar=True,
    help="Processes that share the ports; one for each core that the gateway may fill.",
)
@click.option("--max-body-mib", default=_DEFAULTS.body_bytes // 2**20, type=click.IntRange(min=1))
@click.option("--body-timeout-seconds", default=_DEFAULTS.body_timeout_seconds)
@click.option("--max-header-kib", default=_DEFAULTS.header_bytes // 2**10, type=click.IntRange(min=1))
@click.option("--header-fields", default=_DEFAULTS.header_fields, help="Most lines of a request's head.")
@click.option("--max-target-kib", default=_DEFAULTS.target_bytes // 2**10, type=click.IntRange(min=1))
@click.option("--header-timeout-seconds", default=_DEFAULTS.header_timeout_seconds)
@click.option("--keep-alive-seconds", default=_DEFAULTS.keep_alive_seconds, help="Longest pause between requests.")
@click.option("--connections", default=_DEFAULTS.connections, help="Most clients' connections.")
@click.option("--pipelined-requests", default=_DEFAULTS.pipelined_requests, help="Most sent ahead, without bodies.")
@click.option("--total-timeout-seconds", default=_DEFAULTS.total_timeout_seconds, help="Longest time for one request.")
@click.option("--held-requests", default=_DEFAULTS.held_requests, help="Most requests that wait here.")
@click.option("--held-mib", default=_DEFAULTS.held_bytes // 2**20, help="Most bytes of requests that wait here.")
@click.option("--hold-timeout-seconds", default=_DEFAULTS.hold_timeout_seconds, help="Longest wait for any worker.")
@click.option("--queue-timeout-seconds", default=_DEFAULTS.queue_timeout_seconds, help="Longest wait for busy ones.")
@click.option("--connect-timeout-seconds", default=_DEFAULTS.connect_timeout_seconds, help="To reach an engine.")
@click.option("--failed-attempts", default=_DEFAULTS.failed_attempts, help="After which a request fails.")
@click.option("--retry-seconds", default=_DEFAULTS.retry_seconds, help="After which no failed attempt is repeated.")
@click.option("--idle-timeout-seconds", default=_DEFAULTS.idle_timeout_seconds, help="Longest silence of an engine.")
@click.option(
    "--unstreamed-seconds-per-token",
    default=_DEFAULTS.unstreamed_seconds_per_token,
    help="Added to it for an answer that comes whole, for each token of its limit.",
)
@click.option("--client-stall-seconds", default=_DEFAULTS.client_stall_seconds, help="Longest unread answer.")
@click.option("--window-seconds", default=_DEFAULTS.window_seconds, help="Work that a worker may have ahead.")
@click.option("--propagation-seconds", default=Settings().propagation_seconds, help="Accepting goes on after SIGTERM.")
@click.option("--grace-seconds", default=Settings().grace_seconds, help="Longest time for the last answers.")
@click.option("--log-level", default="INFO", type=click.Choice(("DEBUG", "INFO", "WARNING", "ERROR")))
def main(
    namespace: str | None,
    name: str | None,
    config: Path | None,
    log_level: str,
    processes: int,
    **options: Any,  # noqa: ANN401 - as click passes them
) -> None:
    """Route OpenAI and SGLang requests to prefill and decode workers."""
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    own = membership()
    if processes > 1 and own.count == 1:
        sys.exit(run_group(processes))
    if own.count > 1:
        end_with_the_group()
    try:
        settings = _settings(own, **options)
        if config is not None and not namespace and not name:
            uvloop.run(_run_static(settings, read_static_config(config)))
        elif config is None and namespace and name:
            uvloop.run(_run_in_cluster(settings, namespace, name))
        else:
            raise click.UsageError("give --namespace and --name, or --config alone")
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def _settings(
    own: Membership,
    *,
    engine_token_file: Path | None,
    api_keys_folder: Path | None,
    tls_folder: Path | None,
    trust_file: Path | None,
    host: str | None,
    port: int,
    admin_host: str | None,
    admin_port: int,
    propagation_seconds: float,
    grace_seconds: float,
    max_body_mib: int,
    max_header_kib: int,
    max_target_kib: int,
    held_mib: int,
    held_requests: int,
    connections: int,
    **limits: Any,  # noqa: ANN401 - each option is named like its field
) -> Settings:
    own_host = host or os.environ.get("POD_IP") or "127.0.0.1"
    return Settings(
        host=own_host,
        port=port,
        admin_host=admin_host or own_host,
        admin_port=admin_port,
        name=os.environ.get("POD_NAME") or socket.gethostname(),
        propagation_seconds=propagation_seconds,
        grace_seconds=grace_seconds,
        engine_token_file=engine_token_file,
        api_keys_folder=api_keys_folder,
        tls_folder=tls_folder,
        trust_file=trust_file,
        limits=Limits(
            body_bytes=max_body_mib * 2**20,
            header_bytes=max_header_kib * 2**10,
            target_bytes=max_target_kib * 2**10,
            held_bytes=held_mib * 2**20 // own.count,
            held_requests=held_requests // own.count,
            connections=connections // own.count,
            **limits,
        ),
        membership=own,
    )


async def _run_static(settings: Settings, config: StaticConfig) -> None:
    initial = live_settings(config.spec(), generation=1)
    async with _session() as session:
        gateway = Gateway(settings, session=session, initial=initial)
        await gateway.start(StaticDiscovery(config))
        await _serve_to_the_end(gateway)


async def _run_in_cluster(settings: Settings, namespace: str, name: str) -> None:
    access = cluster_access()
    async with _session() as session:
        pods = ObjectWatch(
            session, access, _PODS_PATH.format(namespace=namespace), selectors={"labelSelector": pod_selector(name)}
        )
        own = ObjectWatch(
            session,
            access,
            _OBJECTS_PATH.format(namespace=namespace),
            selectors={"fieldSelector": f"metadata.name={name}"},
        )
        gateway = Gateway(settings, session=session, initial=LiveSettings())
        await gateway.start(PodDiscovery(pods), own.snapshots())
        await _serve_to_the_end(gateway)


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)


def _spare_the_collector() -> None:
    """What lives from the start lives to the end: looking through it again and again only delays tokens."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


async def _serve_to_the_end(gateway: Gateway) -> None:
    """Until a signal, or until a part of the gateway stops: a process that starts anew beats one with a frozen view."""
    _spare_the_collector()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    ends = [loop.create_task(event.wait()) for event in (told, gateway.broken)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await gateway.stop()
    if gateway.broken.is_set():
        raise click.ClickException("a part of the gateway stopped; the log says which and why")


if __name__ == "__main__":
    main()
