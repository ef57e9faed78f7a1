"""How far a cluster is kept apart from this machine, best first.

Invariant: inside a private network namespace every pod and service address is local to it, so no packet of a
cluster can leave; where none can be made, everything stays on loopback addresses and what then fails is said.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duet_dev.config import cluster_dns
from duet_dev.errors import DevError


@dataclass(frozen=True, slots=True)
class Isolation:
    """Namespaces to make (`unshare`) and to enter (`nsenter`); none means loopback addresses of this machine."""

    name: str
    unshare: tuple[str, ...]
    nsenter: tuple[str, ...]
    pod_network: str = "10.244.0.0/16"
    service_network: str = "10.96.0.0/16"
    mounts: bool = True
    warning: str = ""

    def wrapped(self, command: Sequence[str]) -> list[str]:
        """The command in namespaces of its own. The shell stays its parent: as process 1 it reaps orphans."""
        if not self.unshare:
            return list(command)
        networks = (self.pod_network, self.service_network)
        routes = "".join(f"ip route add local {network} dev lo; " for network in networks)
        # Without an address other than 127.0.0.1 the resolver hides IPv4 answers from whoever sets AI_ADDRCONFIG.
        address = f"ip address add {cluster_dns(self.service_network)}/32 dev lo; "
        script = f'ip link set lo up; {address}{routes}"$@"; exit $?'
        return ["unshare", *self.unshare, "--", "sh", "-ec", script, "sh", *command]

    def entered(self, pid: int, command: Sequence[str]) -> list[str]:
        """The command in the namespaces of a process of the cluster, in the same working folder."""
        if not self.nsenter:
            return list(command)
        return ["nsenter", f"--target={pid}", *self.nsenter, f"--wdns={Path.cwd()}", "--", *command]


USER = ("--user", "--map-root-user")
PROCESSES = ("--pid", "--mount-proc", "--fork", "--kill-child=KILL")
ENTER_USER = ("--user", "--preserve-credentials")

VARIANTS = (
    Isolation(
        "user+network+process",
        unshare=(*USER, "--net", *PROCESSES),
        nsenter=(*ENTER_USER, "--net", "--pid", "--mount"),
    ),
    Isolation(
        "user+network",
        unshare=(*USER, "--net", "--mount"),
        nsenter=(*ENTER_USER, "--net", "--mount"),
    ),
    Isolation(
        "network+process",
        unshare=("--net", *PROCESSES),
        nsenter=("--net", "--pid", "--mount"),
    ),
)
HOST = Isolation("host", unshare=(), nsenter=())
LOOPBACK = Isolation(
    "loopback",
    unshare=(),
    nsenter=(),
    pod_network="127.64.0.0/16",
    service_network="127.96.0.0/16",
    mounts=False,
    warning=(
        "user and network namespaces are forbidden here, so pods share this machine's network on 127.64.x "
        "addresses: EndpointSlices stay empty (they refuse loopback addresses; Services route all the same), "
        "pod volumes and service-account tokens aren't mounted, cluster names may not resolve, and only one such "
        "cluster runs at a time. Allow namespaces with `sysctl -w kernel.unprivileged_userns_clone=1 "
        "user.max_user_namespaces=1000` (with AppArmor also `kernel.apparmor_restrict_unprivileged_userns=0`), "
        "or run as root"
    ),
)

BY_NAME = {isolation.name: isolation for isolation in (*VARIANTS, HOST, LOOPBACK)}


@functools.cache
def best() -> Isolation:
    """The best that this machine allows."""
    for command, package in (("unshare", "util-linux"), ("ip", "iproute2")):
        if not shutil.which(command):
            raise DevError(f"`{command}` is missing: apt-get install {package}")
    for variant in VARIANTS:
        if ("--user" in variant.unshare or os.geteuid() == 0) and _works(variant):
            return variant
    return LOOPBACK


def _works(variant: Isolation) -> bool:
    probe = subprocess.run(
        variant.wrapped(["true"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=20,
    )
    return probe.returncode == 0
