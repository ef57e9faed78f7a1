"""The environment variables of a container, in Kubernetes' order and with its `$(NAME)` references."""

import re
from collections.abc import Mapping

from duet_dev.kubeapi import JsonObject
from duet_dev.kubelet.problems import CannotStart
from duet_dev.kubelet.sources import CONFIG_MAPS, SECRETS, PodSources

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value, `$$` a dollar sign; a reference to an unknown name stays as written."""

    def replacement(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)


def of_services(services: list[JsonObject]) -> dict[str, str]:
    """The `NAME_SERVICE_HOST` and `NAME_SERVICE_PORT…` variables of a namespace's Services."""
    variables: dict[str, str] = {}
    for service in services:
        address = service["spec"].get("clusterIP")
        if address in (None, "", "None"):
            continue
        prefix = service["metadata"]["name"].upper().replace("-", "_") + "_SERVICE"
        ports = service["spec"].get("ports", [])
        variables[f"{prefix}_HOST"] = address
        if ports:
            variables[f"{prefix}_PORT"] = str(ports[0]["port"])
        for port in ports:
            if name := port.get("name"):
                variables[f"{prefix}_PORT_{name.upper().replace('-', '_')}"] = str(port["port"])
    return variables


async def of_container(container: JsonObject, *, base: Mapping[str, str], sources: PodSources) -> dict[str, str]:
    """The base, then `envFrom`, then `env`; later ones win and may refer to earlier ones."""
    variables = dict(base)
    for source in container.get("envFrom", []):
        resource = CONFIG_MAPS if "configMapRef" in source else SECRETS
        reference = source.get("configMapRef") or source["secretRef"]
        data = await sources.data(resource, reference["name"], optional=reference.get("optional", False))
        variables |= {source.get("prefix", "") + key: value.decode() for key, value in data.items()}
    for entry in container.get("env", []):
        value = await _value(entry, container, variables=variables, sources=sources)
        if value is not None:
            variables[entry["name"]] = value
    return variables


async def _value(
    entry: JsonObject, container: JsonObject, *, variables: Mapping[str, str], sources: PodSources
) -> str | None:
    origin = entry.get("valueFrom")
    if not origin:
        return expand(entry.get("value", ""), variables)
    if field := origin.get("fieldRef"):
        return sources.field(field["fieldPath"])
    if resource := origin.get("resourceFieldRef"):
        return sources.resource(resource, container)
    for kind, resource_name in (("configMapKeyRef", CONFIG_MAPS), ("secretKeyRef", SECRETS)):
        if reference := origin.get(kind):
            optional = reference.get("optional", False)
            data = await sources.data(resource_name, reference["name"], optional=optional)
            if reference["key"] in data:
                return data[reference["key"]].decode()
            if optional:
                return None
            message = f"couldn't find key {reference['key']} in {resource_name} {reference['name']}"
            raise CannotStart("CreateContainerConfigError", message)
    raise CannotStart("CreateContainerConfigError", f"env {entry['name']}: unsupported valueFrom {list(origin)}")
