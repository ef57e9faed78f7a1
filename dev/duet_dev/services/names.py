"""Which records a cluster name has. Pure."""

from dataclasses import dataclass, field

from duet_dev.services.directory import Directory, Key


@dataclass(frozen=True, slots=True)
class Service:
    """One SRV answer."""

    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Records:
    """What exists under a name; no records of the asked type is another answer than no such name."""

    addresses: tuple[str, ...] = ()
    alias: str = ""
    services: tuple[Service, ...] = field(default=())


def look_up(name: str, directory: Directory, domain: str) -> Records | None:
    """The records of a full name without its last dot; None when there is no such name."""
    suffix = f".svc.{domain}"
    if not name.lower().endswith(suffix):
        return None
    labels = name.lower().removesuffix(suffix).split(".")
    match labels:
        case [service, namespace]:
            return _of_service((namespace, service), directory)
        case [host, service, namespace]:
            return _of_host(host, (namespace, service), directory)
        case [port, protocol, service, namespace] if port.startswith("_") and protocol == "_tcp":
            return _of_port(port[1:], (namespace, service), directory, domain)
    return None


def _of_service(key: Key, directory: Directory) -> Records | None:
    service = directory.services.items.get(key)
    if service is None:
        return None
    if service["spec"].get("type") == "ExternalName":
        return Records(alias=service["spec"]["externalName"])
    address = service["spec"].get("clusterIP")
    if address and address != "None":
        return Records(addresses=(address,))
    return Records(addresses=tuple(endpoint.address for endpoint in directory.endpoints(key)))


def _of_host(host: str, key: Key, directory: Directory) -> Records | None:
    if key not in directory.services.items:
        return None
    found = tuple(e.address for e in directory.endpoints(key) if e.hostname == host)
    return Records(addresses=found) if found else None


def _of_port(port: str, key: Key, directory: Directory, domain: str) -> Records | None:
    service = directory.services.items.get(key)
    if service is None:
        return None
    namespace, name = key
    target = f"{name}.{namespace}.svc.{domain}"
    ports = [p["port"] for p in service["spec"].get("ports", []) if p.get("name") == port]
    return Records(services=tuple(Service(number, target) for number in ports)) if ports else None
