"""`python -m duet_dev.kubelet --kubeconfig FILE --root DIR --config nodes.yaml`: run until a signal comes."""

import argparse
import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from duet_dev.kubeapi import UNAVAILABLE, Api
from duet_dev.kubelet.claims import CLAIMS, Provisioner
from duet_dev.kubelet.config import Config
from duet_dev.kubelet.context import Context
from duet_dev.kubelet.devices import Devices
from duet_dev.kubelet.events import Events
from duet_dev.kubelet.node import NodeAgent
from duet_dev.kubelet.partition import Partition
from duet_dev.kubelet.pods import Pods
from duet_dev.kubelet.processes import MARKER, Guardian, end_leftovers
from duet_dev.kubelet.server import serving

RETRY_SECONDS = 0.2

log = logging.getLogger(__name__)


async def insist(call: Callable[[], Awaitable[None]]) -> None:
    """Until it succeeds, however long the API server takes to come up."""
    while True:
        try:
            return await call()
        except UNAVAILABLE as error:
            log.warning("starting: %s", error)
        await asyncio.sleep(RETRY_SECONDS)


async def run(context: Context, pods: Pods) -> None:
    provisioner = Provisioner(api=context.api, claims=context.root / CLAIMS)
    async with serving(pods=pods, context=context) as port, asyncio.TaskGroup() as group:
        for node in context.nodes.values():
            agent = NodeAgent(node, context=context, port=port)
            await insist(agent.register)
            group.create_task(agent.beat())
        await insist(pods.reserve_known_addresses)
        await insist(provisioner.announce)
        group.create_task(provisioner.run())
        group.create_task(pods.run())


def end_on_signals() -> None:
    """Cancel the current task at SIGTERM or SIGINT."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def main(kubeconfig: Path, root: Path, config: Config) -> None:
    end_on_signals()
    run_name = secrets.token_hex(8)
    end_leftovers(root, f"{MARKER}={run_name}")
    guardian = Guardian(f"{MARKER}={run_name}")
    async with Api(kubeconfig) as api:
        context = Context(
            api=api,
            config=config,
            root=root,
            marker=run_name,
            events=Events(api),
            partition=Partition(root),
            nodes={node.name: node for node in config.nodes},
            devices={node.name: Devices(node.name, node.resources) for node in config.nodes},
        )
        pods = Pods(context)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await run(context, pods)
        finally:
            await pods.end_all()
            guardian.dismiss()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m duet_dev.kubelet", description="Run pods as local processes.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder for logs, volumes and claims")
    parser.add_argument("--config", type=Path, required=True, help="nodes.yaml")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main(options.kubeconfig, options.root.resolve(), Config.read(options.config)))
