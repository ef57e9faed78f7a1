"""A pod's status from its containers' states: phase and conditions, as a real kubelet computes them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from duet_dev.kubeapi import JsonObject


def waiting(reason: str, message: str = "") -> JsonObject:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def terminated(code: int, reason: str, *, started: str, finished: str, message: str = "") -> JsonObject:
    detail = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": finished}
    return {"terminated": {**detail, **({"message": message} if message else {})}}


@dataclass(frozen=True, slots=True)
class ContainerView:
    """The part of a container's state that the pod's status depends on."""

    name: str
    state: JsonObject
    last_state: JsonObject
    ready: bool
    started: bool
    sidecar: bool = False

    @property
    def exit_code(self) -> int | None:
        end = self.state.get("terminated")
        return end["exitCode"] if end else None


@dataclass(frozen=True, slots=True)
class Condition:
    kind: str
    value: bool
    reason: str = ""
    message: str = ""


def initialized(view: ContainerView) -> bool:
    return view.started if view.sidecar else view.exit_code == 0


def phase(restart_policy: str, init: Sequence[ContainerView], main: Sequence[ContainerView]) -> str:
    if restart_policy == "Never" and any(v.exit_code for v in init if not v.sidecar):
        return "Failed"
    if not all(initialized(view) for view in init) and not all(view.exit_code is not None for view in main):
        return "Pending"
    if all(view.exit_code is not None for view in main):
        failed = any(view.exit_code for view in main)
        if restart_policy == "Always" or (restart_policy == "OnFailure" and failed):
            return "Running"
        return "Failed" if failed else "Succeeded"
    if any("waiting" in view.state and not view.last_state for view in main):
        return "Pending"
    return "Running"


def conditions(
    pod_phase: str,
    init: Sequence[ContainerView],
    main: Sequence[ContainerView],
    *,
    gates: Mapping[str, bool],
) -> list[Condition]:
    """The conditions that a kubelet owns; `gates` are the pod's readiness gates with their present values."""
    over = pod_phase in ("Succeeded", "Failed")
    incomplete = [view.name for view in init if not initialized(view)]
    sidecars = [view for view in init if view.sidecar]
    unready = [view.name for view in (*sidecars, *main) if not view.ready]
    containers_ready = not unready and not incomplete
    if over:
        missing = Condition("ContainersReady", False, "PodCompleted" if pod_phase == "Succeeded" else "PodFailed")
    elif unready or incomplete:
        message = f"containers with unready status: [{' '.join(unready)}]"
        missing = Condition("ContainersReady", False, "ContainersNotReady", message)
    else:
        missing = Condition("ContainersReady", True)
    closed = [name for name, value in gates.items() if not value]
    if missing.value and closed:
        message = "; ".join(f'the status of pod readiness gate "{name}" is not "True"' for name in closed)
        ready = Condition("Ready", False, "ReadinessGatesNotReady", message)
    else:
        ready = Condition("Ready", missing.value, missing.reason, missing.message)
    message = f"containers with incomplete status: [{' '.join(incomplete)}]"
    started = containers_ready or any(view.state.keys() - {"waiting"} for view in (*init, *main))
    return [
        Condition("PodReadyToStartContainers", started and not over),
        Condition("Initialized", True)
        if not incomplete or over
        else Condition("Initialized", False, "ContainersNotInitialized", message),
        missing,
        ready,
    ]
