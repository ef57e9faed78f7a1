"""Which workers there are: the same values from Kubernetes and from a file.

Invariant: a source yields the complete set each time; what follows from a difference is decided by the reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlsplit

from duet_engine.gateway.kubernetes_watch import Snapshots
from duet_engine.gateway.settings import StaticConfig, StaticWorker
from duet_engine.protocol import BOOTSTRAP_PORT, ENGINE_PORT, Role

NAME_LABEL = "duetserve.io/name"
ROLE_LABEL = "duetserve.io/role"
REVISION_LABEL = "duetserve.io/revision"
_ENGINE_ROLES = {"prefill": Role.PREFILL, "decode": Role.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One engine as its source knows it."""

    uid: str
    name: str
    url: str
    role: Role
    revision: str = ""
    bootstrap_port: int = BOOTSTRAP_PORT
    gpu: str = ""
    """Of a server that can't say so itself; empty: unknown."""
    ready: bool = True
    """The source has no objection to new work."""

    @property
    def host(self) -> str:
        """The address under which other engines reach it."""
        return _host(self.url)


@lru_cache(maxsize=4096)
def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


class Discovery(Protocol):
    """A source of members."""

    def members(self) -> AsyncIterator[tuple[Member, ...]]:
        """The complete set, first as soon as it is known and then after each change."""
        ...


class StaticDiscovery:
    """The workers of a file."""

    def __init__(self, config: StaticConfig) -> None:
        self._members = tuple(_static_member(worker) for worker in config.workers)

    async def members(self) -> AsyncIterator[tuple[Member, ...]]:
        yield self._members
        await asyncio.Event().wait()


class PodDiscovery:
    """The pods of one DuetDeployment."""

    def __init__(self, pods: Snapshots) -> None:
        self._pods = pods

    async def members(self) -> AsyncIterator[tuple[Member, ...]]:
        async for pods in self._pods.snapshots():
            members = (pod_member(pod) for pod in pods.values())
            yield tuple(member for member in members if member is not None)


def pod_selector(name: str) -> str:
    """The label selector of an object's engine pods."""
    return f"{NAME_LABEL}={name},{ROLE_LABEL} in (prefill,decode)"


def pod_member(pod: Mapping[str, Any]) -> Member | None:
    """A pod as a member; None while it has no address or once it has ended."""
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    labels = metadata.get("labels") or {}
    role, address = _ENGINE_ROLES.get(labels.get(ROLE_LABEL, "")), status.get("podIP")
    if role is None or not address or status.get("phase") in ("Succeeded", "Failed"):
        return None
    ports = _named_ports(pod)
    host = f"[{address}]" if ":" in address else address
    conditions = status.get("conditions") or ()
    condition_true = any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)
    return Member(
        uid=metadata["uid"],
        name=metadata["name"],
        url=f"http://{host}:{ports.get('http', ENGINE_PORT)}",
        role=role,
        revision=labels.get(REVISION_LABEL, ""),
        bootstrap_port=ports.get("bootstrap", BOOTSTRAP_PORT),
        ready=condition_true and "deletionTimestamp" not in metadata,
    )


def _named_ports(pod: Mapping[str, Any]) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in (pod.get("spec") or {}).get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("name")
    }


def _static_member(worker: StaticWorker) -> Member:
    return Member(
        uid=worker.url,
        name=worker.name or urlsplit(worker.url).netloc,
        url=worker.url,
        role=worker.role,
        revision=worker.revision,
        bootstrap_port=worker.bootstrap_port,
        gpu=worker.gpu,
    )
