"""Parts that pods of engines and gateways share.

Invariant: every call gives fresh dictionaries, so that no two places of a manifest are the same object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_operator.resources.strategic_merge import InvalidTemplateError, merge

if TYPE_CHECKING:
    from collections.abc import Mapping


def pod_environment() -> list[dict[str, Any]]:
    """Variables by which a process knows its pod."""
    fields = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "POD_IP": "status.podIP"}
    return [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in fields.items()
    ]


def probe(path: str, *, port: str, period_seconds: int, failures: int) -> dict[str, Any]:
    """A probe by HTTP, with two seconds to answer."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def patched_template(
    template: Mapping[str, Any], patch: Mapping[str, Any] | None, *, container: str, path: str
) -> dict[str, Any]:
    """A pod template with the user's patch, which may change the named container but not remove it.

    Raises:
        InvalidTemplateError: where it does, or can't be merged.
    """
    patched = merge(template, patch or {}, path=path)
    if not any(item["name"] == container for item in patched.get("spec", {}).get("containers", ())):
        raise InvalidTemplateError(f"{path} removes the container {container!r}; patch it in place")
    return patched
