"""What a local cluster is made of: its components, its nodes and what runs for an image.

Invariant: values only; one JSON document in the cluster's folder carries them to the supervisor.
"""

import ipaddress
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duet_dev import engine_environment
from duet_dev.errors import DevError

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
WHOLE_CLUSTER = (*CONTROL_PLANE, "kubelet", "services")
API_SERVER_ONLY = ("etcd", "kube-apiserver")
WITH_CONTROLLERS = ("etcd", "kube-apiserver", "kube-controller-manager")

CONFIG_FILE = "cluster.json"

DEFAULT_CAPACITY: Mapping[str, str] = {
    "nvidia.com/gpu": "8",
    "nvidia.com/mig-1g.10gb": "8",
    "nvidia.com/mig-2g.20gb": "8",
    "nvidia.com/mig-3g.40gb": "8",
}
DEFAULT_IMAGES: Mapping[str, list[str]] = {
    "duet-operator": ["duet-operator"],
    "duet-gateway": ["duet-gateway"],
    "duet-simulated-engine": ["duet-simulated-engine"],
    # For pods of one's own: this Python with its packages, and an image that leaves everything to `command`.
    "python": [sys.executable],
    "busybox": [],
}


def default_images() -> dict[str, list[str]]:
    """What stands for an image; for the engine's, the real SGLang where `make engine-env` has put it."""
    engine = {"duet-engine": engine_environment.command()} if engine_environment.ready() else {}
    return {**DEFAULT_IMAGES, **engine}


@dataclass(frozen=True, slots=True)
class Node:
    """A node that the process kubelet plays; nothing is reserved or measured, capacity is what it says."""

    name: str
    capacity: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_CAPACITY))
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()


def default_nodes(count: int = 3) -> tuple[Node, ...]:
    return tuple(Node(f"gpu-{index}") for index in range(count))


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Everything that decides what `up` starts.

    `images` maps an image's base name to a local command, or to what else the kubelet's file knows of an image;
    `kubelet` adds fields to that file as they are (`heartbeatSeconds`, `backoff` …); `isolation` is `auto` or one of
    the names in `isolation.py`.
    """

    name: str
    components: tuple[str, ...] = WHOLE_CLUSTER
    nodes: tuple[Node, ...] = field(default_factory=default_nodes)
    images: Mapping[str, list[str] | Mapping[str, Any]] = field(default_factory=default_images)
    environment: Mapping[str, str] = field(default_factory=dict)
    kubelet: Mapping[str, Any] = field(default_factory=dict)
    isolation: str = "auto"

    def __post_init__(self) -> None:
        unknown = set(self.components) - set(WHOLE_CLUSTER)
        if unknown:
            raise DevError(f"components: {sorted(unknown)} unknown; choose from {', '.join(WHOLE_CLUSTER)}")
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            raise DevError(f"nodes: names must differ, got {names}")

    def write(self, root: Path) -> None:
        (root / CONFIG_FILE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, root: Path) -> "ClusterConfig":
        document: dict[str, Any] = json.loads((root / CONFIG_FILE).read_text())
        nodes = tuple(Node(**{**node, "taints": tuple(node["taints"])}) for node in document.pop("nodes"))
        return cls(**{**document, "components": tuple(document["components"])}, nodes=nodes)


def cluster_dns(service_network: str) -> str:
    """The address of the cluster's name server, by custom the tenth of the Services'."""
    return str(ipaddress.ip_network(service_network)[10])


def kubelet_document(config: ClusterConfig, *, pod_network: str, service_network: str, mounts: bool) -> dict[str, Any]:
    """What the process kubelet and the service relay read."""
    # This Python's own commands come first, so that an image's command is the installed one.
    path = f"{sys.prefix}/bin:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {
        "nodes": [asdict(node) for node in config.nodes],
        "podCIDR": pod_network,
        "clusterDNS": cluster_dns(service_network),
        "mounts": mounts,
        "images": dict(config.images),
        "env": {"PATH": path, "PYTHONUNBUFFERED": "1", **config.environment},
        **config.kubelet,
    }
