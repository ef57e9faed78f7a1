"""Start a cluster's components in order, wait until each answers, keep them running, end them.

Invariant: before everything is ready a component that exits is an error that shows its log; afterwards it is
restarted. State is thrown away with the cluster, so the control plane is ended at once, without ceremony.
"""

import asyncio
import functools
import os
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from duet_dev import components, credentials
from duet_dev.components import HOST, Files, Ports
from duet_dev.config import ClusterConfig
from duet_dev.errors import DevError
from duet_dev.kubeapi import UNAVAILABLE, Api
from duet_dev.paths import python_path
from duet_dev.processes import MARKER_VARIABLE, Child

READY_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.05
# Below the range from which the kernel takes ports for outgoing connections.
PORT_RANGE = range(20_000, 32_000)
NODE_COMPONENTS = ("kubelet", "services")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nothing listens on."""
    found: list[int] = []
    for port in random.sample(PORT_RANGE, len(PORT_RANGE)):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise DevError(f"fewer than {count} free ports on {HOST} in {PORT_RANGE.start}-{PORT_RANGE.stop}")


@dataclass(slots=True)
class ControlPlane:
    """The components of one cluster as child processes of this one."""

    config: ClusterConfig
    files: Files
    service_network: str
    ports: Ports = field(default_factory=lambda: Ports(*free_ports(5)))
    children: dict[str, Child] = field(default_factory=dict)
    ready_seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return components.api_server_url(self.ports)

    async def start(self) -> None:
        """Everything in the configuration, ready to serve."""
        self.tokens = credentials.write_secrets(self.files.pki)
        controllers = "kube-controller-manager" in self.config.components
        await self._spawn("etcd", components.etcd(self.files, self.ports))
        api_server = components.api_server(
            self.files, self.ports, service_network=self.service_network, controllers=controllers
        )
        await self._spawn("kube-apiserver", api_server)
        async with _health_session() as session:
            await self._wait("etcd", functools.partial(_healthy, session, f"{components.etcd_url(self.ports)}/health"))
            await self._wait("kube-apiserver", functools.partial(_healthy, session, f"{self.url}/readyz"))
            self._write_kubeconfigs()
            await self._start_clients()
            for name, port in self._health_ports().items():
                url = f"https://{HOST}:{port}/healthz"
                await self._wait(name, functools.partial(_healthy, session, url))
        if "kubelet" in self.config.components:
            async with Api(self.files.kubeconfig(credentials.ADMIN)) as api:
                await self._wait("kubelet", functools.partial(self._nodes_ready, api))
        self._keepers = [asyncio.create_task(child.keep_running()) for child in self.children.values()]

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        # The kubelet ends its pods; the rest holds nothing worth a farewell.
        nodes = [child for name, child in self.children.items() if name in NODE_COMPONENTS]
        await asyncio.gather(*(child.stop(gently=True) for child in nodes))
        await asyncio.gather(*(child.stop(gently=False) for child in self.children.values()))

    async def _start_clients(self) -> None:
        config, files = self.config, self.files
        wanted = config.components
        if "kube-controller-manager" in wanted:
            kubeconfig = files.kubeconfig(credentials.CONTROLLER_MANAGER_USER)
            command = components.controller_manager(files, self.ports, kubeconfig)
            await self._spawn("kube-controller-manager", command)
        if "kube-scheduler" in wanted:
            kubeconfig = files.kubeconfig(credentials.SCHEDULER_USER)
            await self._spawn("kube-scheduler", components.scheduler(self.ports, kubeconfig))
        for name in NODE_COMPONENTS:
            if name in wanted:
                await self._spawn(name, self._node_command(name))

    def _node_command(self, name: str) -> list[str]:
        folder = self.files.root / name
        folder.mkdir(exist_ok=True)
        arguments = components.flags(kubeconfig=self.files.kubeconfig(name), root=folder, config=self.files.nodes)
        return [sys.executable, "-m", f"duet_dev.{name}", *arguments]

    def _write_kubeconfigs(self) -> None:
        authority = self.files.certificate_authority.read_bytes()
        for user, token in self.tokens.items():
            credentials.write_kubeconfig(
                self.files.kubeconfig(user),
                url=self.url,
                certificate_authority=authority,
                user=user,
                token=token,
            )

    def _health_ports(self) -> dict[str, int]:
        ports = {
            "kube-controller-manager": self.ports.controller_manager,
            "kube-scheduler": self.ports.scheduler,
        }
        return {name: port for name, port in ports.items() if name in self.children}

    async def _spawn(self, name: str, command: list[str]) -> None:
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self.files.root),
            "PYTHONPATH": python_path(),
            "PYTHONUNBUFFERED": "1",
            MARKER_VARIABLE: os.environ.get(MARKER_VARIABLE, self.config.name),
        }
        child = Child(name, command, self.files.logs / f"{name}.log", environment)
        self.children[name] = child
        await child.start()

    async def _wait(self, name: str, ready: Callable[[], Awaitable[bool]]) -> None:
        deadline = self._started + READY_TIMEOUT_SECONDS
        while not await ready():
            for child in self.children.values():
                if not child.running:
                    raise DevError(f"{child.name} exited with status {child.exit_status}:\n{child.log_tail()}")
            if time.monotonic() > deadline:
                child = self.children[name]
                raise DevError(
                    f"{name} isn't ready after {READY_TIMEOUT_SECONDS:.0f} s; its log {child.log} ends with:\n"
                    + child.log_tail()
                )
            await asyncio.sleep(POLL_SECONDS)
        self.ready_seconds[name] = round(time.monotonic() - self._started, 2)

    async def _nodes_ready(self, api: Api) -> bool:
        try:
            nodes = (await api.get("/api/v1/nodes"))["items"]
        except UNAVAILABLE:
            return False
        ready = {
            node["metadata"]["name"]
            for node in nodes
            for condition in node["status"].get("conditions", [])
            if condition["type"] == "Ready" and condition["status"] == "True"
        }
        return ready >= {node.name for node in self.config.nodes}


def _health_session() -> aiohttp.ClientSession:
    # Health answers carry no secret, and each component has just made its certificate for itself.
    connector = aiohttp.TCPConnector(ssl=False)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5))


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
