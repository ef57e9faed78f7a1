"""Where a Service's connections may go: from EndpointSlices, or straight from pods where slices can't say. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from duet_dev.kubeapi import JsonObject

SERVICE_NAME_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Endpoint:
    address: str
    ready: bool
    terminating: bool
    hostname: str
    ports: Mapping[str, int]  # by the name of the Service's port, "" for an unnamed one


def of_slice(item: JsonObject) -> list[Endpoint]:
    ports = {port.get("name") or "": port["port"] for port in item.get("ports") or [] if port.get("port")}
    return [
        Endpoint(
            address=endpoint["addresses"][0],
            # A terminating endpoint is never `ready`, but goes on `serving` while its probe says so.
            ready=endpoint.get("conditions", {}).get("serving", endpoint.get("conditions", {}).get("ready", True)),
            terminating=endpoint.get("conditions", {}).get("terminating", False),
            hostname=endpoint.get("hostname") or "",
            ports=ports,
        )
        for endpoint in item.get("endpoints") or []
        if endpoint.get("addresses")
    ]


def selects(service: JsonObject, pod: JsonObject) -> bool:
    selector: dict[str, str] = service["spec"].get("selector") or {}
    labels = pod["metadata"].get("labels", {})
    same_namespace = service["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return bool(selector) and same_namespace and selector.items() <= labels.items()


def of_pods(service: JsonObject, pods: Iterable[JsonObject]) -> list[Endpoint]:
    """What the slices would say if they took loopback addresses."""
    return [
        Endpoint(
            address=pod["status"]["podIP"],
            ready=any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in pod["status"].get("conditions", [])
            ),
            terminating="deletionTimestamp" in pod["metadata"],
            hostname=pod["spec"].get("hostname", ""),
            ports=_ports(service, pod),
        )
        for pod in pods
        if pod["status"].get("podIP")
        and pod["status"].get("phase") not in ("Succeeded", "Failed")
        and selects(service, pod)
    ]


def _ports(service: JsonObject, pod: JsonObject) -> dict[str, int]:
    named = {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
        if "name" in port
    }
    ports: dict[str, int] = {}
    for port in service["spec"].get("ports", []):
        target = port.get("targetPort", port["port"])
        number = target if isinstance(target, int) else named.get(target)
        if number:
            ports[port.get("name") or ""] = number
    return ports


def usable(endpoints: Iterable[Endpoint], *, unready_too: bool = False) -> list[Endpoint]:
    """The ready ones; while there is none, those that still serve although they are ending."""
    ready = [e for e in endpoints if unready_too or (e.ready and not e.terminating)]
    return ready or [e for e in endpoints if e.ready and e.terminating]
