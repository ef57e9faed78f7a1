"""`python -m duet_dev.services --kubeconfig FILE --root DIR --config nodes.yaml`: run until a signal comes."""

import argparse
import asyncio
import contextlib
import functools
import logging
import signal
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from duet_dev.kubeapi import UNAVAILABLE, Api, JsonObject
from duet_dev.kubelet.config import Config
from duet_dev.services import dns, names
from duet_dev.services.directory import Directory, Objects, key_of
from duet_dev.services.relay import Relay

SETTLE_SECONDS = 0.02  # a rollout changes many slices at once; one pass serves them all
DNS_PORT = 53

log = logging.getLogger(__name__)


async def keep(objects: Objects, api: Api, path: str, changed: asyncio.Event) -> None:
    async for event in api.watch(path):
        objects.apply(event)
        changed.set()


async def balance(service: JsonObject, api: Api) -> None:
    """Be the load balancer that somebody waits for: the cluster address is as far out as it gets here."""
    (namespace, name), address = key_of(service), service["spec"]["clusterIP"]
    status = {"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}
    with contextlib.suppress(*UNAVAILABLE):  # gone meanwhile, or tried again at the next change
        await api.patch(f"/api/v1/namespaces/{namespace}/services/{name}/status", status)


async def relay(directory: Directory, changed: asyncio.Event, api: Api) -> None:
    """Keep the listening addresses equal to the routes."""
    connections = Relay()
    try:
        while True:
            await changed.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            changed.clear()
            await connections.follow(directory.routes())
            for service in directory.unbalanced():
                await balance(service, api)
    finally:
        connections.close()


async def resolve(directory: Directory, config: Config) -> None:
    look_up = functools.partial(names.look_up, directory=directory, domain=config.cluster_domain)
    try:
        await dns.serve(str(config.cluster_dns), DNS_PORT, look_up)
    except OSError as error:
        log.error("cluster names don't resolve: %s", error)


async def run(kubeconfig: Path, config: Config) -> None:
    changed = asyncio.Event()
    async with Api(kubeconfig) as api, asyncio.TaskGroup() as group:
        server = urlsplit(api.url)
        directory = Directory((server.hostname or "", server.port or 443), config.loopback)
        group.create_task(keep(directory.services, api, "/api/v1/services", changed))
        if config.loopback:
            group.create_task(keep(directory.pods, api, "/api/v1/pods", changed))
        else:
            slices = "/apis/discovery.k8s.io/v1/endpointslices"
            group.create_task(keep(directory.slices, api, slices, changed))
        group.create_task(relay(directory, changed, api))
        group.create_task(resolve(directory, config))


async def main(kubeconfig: Path, config: Config) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await run(kubeconfig, config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m duet_dev.services", description="Serve the addresses and names of Services."
    )
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="unused: nothing is kept on disk")
    parser.add_argument("--config", type=Path, required=True, help="nodes.yaml")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvloop.run(main(options.kubeconfig, Config.read(options.config)))
