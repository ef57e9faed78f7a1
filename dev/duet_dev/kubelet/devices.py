"""Which of a node's devices belong to which pod, as a device plugin would hand them out.

Invariant: an id belongs to at most one pod at a time.
"""

import uuid

from duet_dev.kubeapi import JsonObject

NAMESPACE = uuid.UUID("6f1d7c3e-2f0c-4d56-9b0a-5c8d6a1b9e42")
VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"


class NotEnoughDevices(Exception):
    """The scheduler counted on devices that other pods of the node still hold."""


def device_id(node: str, resource: str, index: int) -> str:
    """A stable id in the vendor's form: GPU-… for whole GPUs, MIG-… for slices."""
    kind = "MIG" if "/mig-" in resource else "GPU"
    return f"{kind}-{uuid.uuid5(NAMESPACE, f'{node}/{resource}/{index}')}"


def is_device(resource: str) -> bool:
    return "/" in resource and not resource.startswith("kubernetes.io/")


def requested(container: JsonObject) -> dict[str, int]:
    """The extended resources that a container asks for."""
    limits = container.get("resources", {}).get("limits", {})
    return {name: int(amount) for name, amount in limits.items() if is_device(name)}


class Devices:
    """The devices of one node."""

    def __init__(self, node: str, capacity: dict[str, str]) -> None:
        self._free = {
            resource: [device_id(node, resource, index) for index in range(int(amount))]
            for resource, amount in capacity.items()
            if is_device(resource)
        }
        self._held: dict[str, list[tuple[str, str]]] = {}

    def allocate(self, pod: str, wanted: dict[str, int]) -> dict[str, str]:
        """Take the devices for one container of the pod; the variables that tell it which."""
        taken: list[str] = []
        for resource, amount in wanted.items():
            free = self._free.get(resource, [])
            if amount > len(free):
                raise NotEnoughDevices(
                    f"Allocate failed: requested {amount} of {resource}, {len(free)} free on this node"
                )
        for resource, amount in wanted.items():
            for _ in range(amount):
                identifier = self._free[resource].pop(0)
                self._held.setdefault(pod, []).append((resource, identifier))
                taken.append(identifier)
        return {VISIBLE_DEVICES: ",".join(taken)} if taken else {}

    def release(self, pod: str) -> None:
        for resource, identifier in self._held.pop(pod, []):
            self._free[resource].append(identifier)
