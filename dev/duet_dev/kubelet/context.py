"""What all pods of one kubelet share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from duet_dev.kubeapi import Api, JsonObject
from duet_dev.kubelet.config import Config, Node
from duet_dev.kubelet.devices import Devices
from duet_dev.kubelet.events import Events
from duet_dev.kubelet.partition import Partition

HOST_ADDRESS = "127.0.0.1"


def log_folder(root: Path, pod: JsonObject) -> Path:
    """Where a pod's logs lie, in the layout of a real node's /var/log/pods."""
    metadata = pod["metadata"]
    return root / "logs" / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"


@dataclass(frozen=True, slots=True)
class Context:
    api: Api
    config: Config
    root: Path
    marker: str  # in the environment of every process under this kubelet
    events: Events
    partition: Partition
    nodes: Mapping[str, Node]
    devices: Mapping[str, Devices]

    def log_file(self, pod: JsonObject, container: str, run: int) -> Path:
        path = log_folder(self.root, pod) / container / f"{run}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
