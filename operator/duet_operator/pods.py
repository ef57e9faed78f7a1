"""A pod as the operator sees it, read from its manifest.

Invariant: pure; nothing but what decisions need is kept, so that ten thousand pods stay cheap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from duet_operator.resources.labels import OWNER, REVISION, ROLE, TEMPLATE
from duet_operator.resources.pools import CONTAINER

DRAIN_ANNOTATION = "duetserve.io/drain"
"""Set to "true" by hand: finish this pod's requests, then delete it so that a new one takes its place."""
DRAIN_STARTED_ANNOTATION = "duetserve.io/drain-started"
"""Set by the operator on a pod that it drains: since when, so that a restarted operator goes on."""
DRAIN_GIVEN_UP_ANNOTATION = "duetserve.io/drain-given-up"
"""Set by the operator on a pod whose drain timed out: since when, so that another victim is tried first."""
DELETION_COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

_KEPT_ANNOTATIONS = (
    DRAIN_ANNOTATION,
    DRAIN_STARTED_ANNOTATION,
    DRAIN_GIVEN_UP_ANNOTATION,
    DELETION_COST_ANNOTATION,
)
_FAILED_WAITS = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
_READINESS_GRACE_SECONDS = 3.0
"""A Ready condition that last changed so soon after the pod's start was never True."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod. Times are seconds since the epoch by the cluster's clocks."""

    namespace: str
    name: str
    uid: str
    resource_version: str = field(default="", compare=False)
    owner: str = ""
    """Its DuetDeployment."""
    role: str = ""
    revision: str = ""
    template: str = ""
    """Hash of the pod template that it was made from."""
    node: str = ""
    address: str = ""
    created_seconds: float = 0.0
    ready: bool = False
    ready_changed_seconds: float | None = None
    """When the Ready condition last changed."""
    has_been_ready: bool = False
    """It is Ready, or was."""
    engine_stopped: bool = False
    """Its engine isn't running, such as between two tries of a crash loop: what it held is lost already."""
    terminating: bool = False
    phase: str = "Pending"
    trouble: str | None = None
    """Why it can't become ready by itself, such as Unschedulable or CrashLoopBackOff; None if nothing is wrong."""
    words: str = field(default="", compare=False)
    """What the scheduler or the kubelet says of its not being ready."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """It counts as one of its Deployment's replicas."""
        return not self.terminating and self.phase not in ("Succeeded", "Failed")

    @property
    def holds_gpu(self) -> bool:
        """It's on a node and not at its end."""
        return bool(self.node) and self.phase not in ("Succeeded", "Failed")

    @property
    def may_hold_requests(self) -> bool:
        """Its engine runs and was ready at some time."""
        return self.has_been_ready and not self.engine_stopped

    @property
    def draining_since_seconds(self) -> float | None:
        """Since when the operator has been draining it."""
        return read_time(self.annotations.get(DRAIN_STARTED_ANNOTATION))

    @property
    def given_up_seconds(self) -> float | None:
        """When a drain of it was last given up."""
        return read_time(self.annotations.get(DRAIN_GIVEN_UP_ANNOTATION))

    @property
    def drain_requested(self) -> bool:
        """Someone asked by hand for its drain."""
        return self.annotations.get(DRAIN_ANNOTATION, "false").lower() not in ("", "false")

    def endpoint(self, port_name: str, default_port: int) -> str:
        """`host:port` of one of its named ports."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.ports.get(port_name, default_port)}"


Credentials = Callable[[Pod], Awaitable[dict[str, str]]]
"""Headers by which the server in a pod knows who calls."""


def read_time(text: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time, None for none and for what isn't one."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def read_pod(body: Mapping[str, Any]) -> Pod:
    """The pod of a manifest as the API server gives it."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    ready_changed = read_time(ready.get("lastTransitionTime"))
    started = read_time(status.get("startTime"))
    is_ready = ready.get("status") == "True"
    changed_late = (
        ready_changed is not None and started is not None and ready_changed - started > _READINESS_GRACE_SECONDS
    )
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion", ""),
        owner=labels.get(OWNER, ""),
        role=labels.get(ROLE, ""),
        revision=labels.get(REVISION, ""),
        template=labels.get(TEMPLATE, ""),
        node=spec.get("nodeName", ""),
        address=status.get("podIP", ""),
        created_seconds=read_time(metadata.get("creationTimestamp")) or 0.0,
        ready=is_ready,
        ready_changed_seconds=ready_changed,
        has_been_ready=is_ready or changed_late,
        engine_stopped=_engine_stopped(status),
        terminating="deletionTimestamp" in metadata,
        phase=status.get("phase", "Pending"),
        trouble=_trouble(conditions, status),
        words="" if is_ready else _words(conditions, status),
        annotations={name: annotations[name] for name in _KEPT_ANNOTATIONS if name in annotations},
        ports={
            port["name"]: port["containerPort"]
            for container in spec.get("containers") or ()
            for port in container.get("ports") or ()
            if "name" in port
        },
    )


def _trouble(conditions: Mapping[str, Mapping[str, Any]], status: Mapping[str, Any]) -> str | None:
    """What keeps the pod from starting, as the scheduler or the kubelet says it."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason") or "Unschedulable"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        state = container.get("state") or {}
        reason = (state.get("waiting") or {}).get("reason")
        if reason in _FAILED_WAITS:
            return str(reason)
        if "running" in state and not container.get("ready") and _ended_before(container):
            # The next try of a crash loop runs for a while; it's the same loop.
            return "CrashLoopBackOff"
    return None


def _words(conditions: Mapping[str, Mapping[str, Any]], status: Mapping[str, Any]) -> str:
    """The message that goes with its trouble, else that of its readiness."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return str(scheduled.get("message", ""))
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _FAILED_WAITS:
            return str(waiting.get("message", ""))
        if _ended_before(container) and not container.get("ready"):
            ended = container["lastState"]["terminated"]
            return f"{container.get('name')} ended with exit code {ended.get('exitCode')}: {ended.get('reason', '')}"
        if "running" in (container.get("state") or {}) and not container.get("ready"):
            probe = "readiness" if container.get("started") else "startup"
            return f"{container.get('name')} runs but its {probe} probe doesn't pass"
    return str(conditions.get("Ready", {}).get("message", ""))


def _ended_before(container: Mapping[str, Any]) -> bool:
    return container.get("restartCount", 0) > 0 and "terminated" in (container.get("lastState") or {})


def _engine_stopped(status: Mapping[str, Any]) -> bool:
    """The kubelet says so; a pod of which it says nothing may well run."""
    engine = next((each for each in status.get("containerStatuses") or () if each.get("name") == CONTAINER), None)
    state = {} if engine is None else engine.get("state") or {}
    return "waiting" in state or "terminated" in state
