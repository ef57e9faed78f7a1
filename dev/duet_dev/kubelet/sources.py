"""What a pod reads from the API: ConfigMaps, Secrets, its own fields and resources, service-account tokens."""

import base64
import json
import re
from dataclasses import dataclass
from datetime import datetime

from duet_dev.kubeapi import Api, ApiError, JsonObject
from duet_dev.kubelet import quantity
from duet_dev.kubelet.problems import CannotStart

CONFIG_MAPS, SECRETS = "configmaps", "secrets"

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class Token:
    value: str
    expires: datetime


class PodSources:
    """Reads on behalf of one pod; `pod` is its object as it was when the pod came to this node."""

    def __init__(self, *, api: Api, pod: JsonObject, address: str, host_address: str, node: dict[str, str]) -> None:
        self.api, self.pod, self.node = api, pod, node
        self.namespace: str = pod["metadata"]["namespace"]
        self._status = {
            "podIP": address,
            "podIPs": address,
            "hostIP": host_address,
            "hostIPs": host_address,
        }

    async def data(self, resource: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
        """The content of a ConfigMap or Secret; nothing when it is optional and absent."""
        try:
            item = await self.api.get(f"/api/v1/namespaces/{self.namespace}/{resource}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            if optional:
                return {}
            kind = resource.removesuffix("s")
            raise CannotStart("CreateContainerConfigError", f'{kind} "{name}" not found') from None
        binary = item.get("data", {}) if resource == SECRETS else item.get("binaryData", {})
        text = {} if resource == SECRETS else item.get("data", {})
        return {
            **{key: base64.b64decode(value) for key, value in (binary or {}).items()},
            **{key: value.encode() for key, value in (text or {}).items()},
        }

    def field(self, path: str) -> str:
        """A pod field as env variables and downward API files show it."""
        metadata = self.pod["metadata"]
        if subscript := _SUBSCRIPT.fullmatch(path):
            return str(metadata.get(subscript[1], {}).get(subscript[2], ""))
        if path in ("metadata.labels", "metadata.annotations"):
            entries = metadata.get(path.removeprefix("metadata."), {})
            return "\n".join(f"{key}={json.dumps(value)}" for key, value in sorted(entries.items()))
        top, _, key = path.partition(".")
        if top == "status" and key in self._status:
            return self._status[key]
        if top in ("metadata", "spec") and isinstance(value := self.pod[top].get(key, ""), str):
            return value
        raise CannotStart("CreateContainerConfigError", f"unsupported fieldPath {path!r}")

    def resource(self, reference: JsonObject, container: JsonObject) -> str:
        """A container's request or limit in units of the divisor; the node's capacity where no limit is set."""
        if name := reference.get("containerName"):
            container = next(c for c in self.pod["spec"]["containers"] if c["name"] == name)
        kind, _, resource = reference["resource"].partition(".")
        given = container.get("resources", {}).get(kind, {}).get(resource)
        amount = given or (self.node.get(resource, "0") if kind == "limits" else "0")
        return str(quantity.in_units(amount, reference.get("divisor", "1")))

    async def token(self, source: JsonObject) -> Token:
        """A fresh token of the pod's service account, bound to this pod."""
        metadata, account = self.pod["metadata"], self.pod["spec"]["serviceAccountName"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        reply = await self.api.post(
            f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [source["audience"]] if source.get("audience") else [],
                    "expirationSeconds": source.get("expirationSeconds", 3600),
                    "boundObjectRef": bound,
                },
            },
        )
        status = reply["status"]
        return Token(status["token"], datetime.fromisoformat(status["expirationTimestamp"]))
