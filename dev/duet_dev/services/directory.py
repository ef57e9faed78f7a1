"""What the API server says of Services and their endpoints, as routes and as answers to name queries. Pure.

Invariant: a route exists exactly while something may answer on it, so that a Service without endpoints refuses
connections as on any cluster.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from duet_dev.kubeapi import JsonObject, WatchEvent
from duet_dev.kubelet.context import HOST_ADDRESS
from duet_dev.services import endpoints
from duet_dev.services.endpoints import SERVICE_NAME_LABEL, Endpoint

Address = tuple[str, int]
Key = tuple[str, str]  # namespace, name

API_SERVICE: Key = ("default", "kubernetes")


def key_of(item: JsonObject) -> Key:
    return item["metadata"]["namespace"], item["metadata"]["name"]


@dataclass(slots=True)
class Objects:
    """The present objects of one kind."""

    items: dict[Key, JsonObject] = field(default_factory=dict)

    def apply(self, event: WatchEvent) -> None:
        key = key_of(event.object)
        if event.kind != "DELETED":
            self.items[key] = event.object
        elif self.items.get(key, event.object)["metadata"]["uid"] == event.object["metadata"]["uid"]:
            self.items.pop(key, None)


@dataclass(frozen=True, slots=True)
class Directory:
    api_server: Address
    from_pods: bool  # resolve endpoints from pods: slices refuse loopback addresses
    services: Objects = field(default_factory=Objects)
    slices: Objects = field(default_factory=Objects)
    pods: Objects = field(default_factory=Objects)

    def endpoints(self, key: Key) -> list[Endpoint]:
        service = self.services.items[key]
        unready_too = service["spec"].get("publishNotReadyAddresses", False)
        found = self._from_pods(service) if self.from_pods else self._from_slices(key)
        return endpoints.usable(found, unready_too=unready_too)

    def _from_pods(self, service: JsonObject) -> list[Endpoint]:
        return endpoints.of_pods(service, self.pods.items.values())

    def _from_slices(self, key: Key) -> list[Endpoint]:
        namespace, name = key
        return [
            endpoint
            for (slice_namespace, _), item in self.slices.items.items()
            if slice_namespace == namespace
            and item["metadata"].get("labels", {}).get(SERVICE_NAME_LABEL) == name
            and item.get("addressType") == "IPv4"
            for endpoint in endpoints.of_slice(item)
        ]

    def routes(self) -> dict[Address, tuple[Address, ...]]:
        """For each address and port that a Service offers: where its connections go."""
        found: dict[Address, tuple[Address, ...]] = {}
        for key, service in self.services.items.items():
            cluster_address = service["spec"].get("clusterIP")
            if not cluster_address or cluster_address == "None":
                continue
            targets = [] if key == API_SERVICE else self.endpoints(key)
            for port in service["spec"].get("ports", []):
                if port.get("protocol", "TCP") != "TCP":
                    continue
                to = [self.api_server] if key == API_SERVICE else list(_targets(port, targets))
                if not to:
                    continue
                found[cluster_address, port["port"]] = tuple(sorted(to))
                if "nodePort" in port:
                    found[HOST_ADDRESS, port["nodePort"]] = tuple(sorted(to))
        return found

    def unbalanced(self) -> list[JsonObject]:
        """Services of type LoadBalancer that have not been given their outer address yet."""
        return [
            service
            for service in self.services.items.values()
            if service["spec"].get("type") == "LoadBalancer"
            and not service.get("status", {}).get("loadBalancer", {}).get("ingress")
        ]


def _targets(port: JsonObject, found: Iterable[Endpoint]) -> Iterable[Address]:
    name = port.get("name") or ""
    return ((endpoint.address, endpoint.ports[name]) for endpoint in found if name in endpoint.ports)
