"""One pool, or the gateway, as the cache shows it: its Deployment and its pods, and what they say together.

Invariant: pure. What a Deployment's status says counts only where its controller has seen the present spec.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from duet_operator.deployments import base_replicas, observed
from duet_operator.resources.labels import REVISION, TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.pods import Pod

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PoolSight:
    """One pool as the cluster shows it. `deployment` is None before it's created."""

    deployment: Manifest | None
    pods: tuple[Pod, ...]
    first_replicas: int = 0
    """What it will be created with."""

    @property
    def version(self) -> str:
        """Its Deployment's resourceVersion."""
        return "" if self.deployment is None else str(self.deployment["metadata"].get("resourceVersion", ""))

    @property
    def replicas(self) -> int:
        """What its Deployment asks for."""
        return self.first_replicas if self.deployment is None else int(self.deployment["spec"].get("replicas", 1))

    @property
    def base_replicas(self) -> int:
        """`replicas` without successors that are only there until their predecessors have left."""
        return self.replicas if self.deployment is None else base_replicas(self.deployment)

    @property
    def successors(self) -> int:
        """Workers beyond its count, until those whose successors they are have left."""
        return self.replicas - self.base_replicas

    @cached_property
    def places(self) -> Counter[str]:
        """What one of its workers takes that only a leaving one gives back: its GPUs, by the name of their kind."""
        pod = {} if self.deployment is None else self.deployment["spec"]["template"].get("spec") or {}
        limits = [container.get("resources", {}).get("limits") or {} for container in pod.get("containers") or ()]
        return +Counter({name: _whole(each[name]) for each in limits for name in each if "/" in name})

    @property
    def revision(self) -> str:
        """Revision of the present pod template."""
        return self._template_label(REVISION)

    @property
    def template(self) -> str:
        """Hash of the present pod template, empty where it has none."""
        return self._template_label(TEMPLATE)

    def _template_label(self, label: str) -> str:
        if self.deployment is None:
            return ""
        return str((self.deployment["spec"]["template"]["metadata"].get("labels") or {}).get(label, ""))

    @cached_property
    def alive(self) -> tuple[Pod, ...]:
        """Pods that count as replicas."""
        return tuple(pod for pod in self.pods if pod.alive)

    @cached_property
    def rollout_in_progress(self) -> bool:
        """Pods of an older template are left. A mere change of the count is none."""
        if self.deployment is None:
            return False
        status = self.deployment.get("status") or {}
        outdated = observed(self.deployment) and status.get("updatedReplicas", 0) < status.get("replicas", 0)
        return outdated or len(self.updated) < len(self.alive)

    @cached_property
    def updated(self) -> tuple[Pod, ...]:
        """Pods of the present template."""
        revision, template = self.revision, self.template
        return tuple(
            pod for pod in self.alive if pod.revision == revision and (not template or pod.template == template)
        )

    @property
    def surge(self) -> int:
        """Pods that its Deployment may have beyond its count, as long as it rolls."""
        if self.deployment is None or not self.rollout_in_progress:
            return 0
        update = (self.deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
        surge = update.get("maxSurge", 0)
        return surge if isinstance(surge, int) else 0

    @property
    def counted(self) -> bool:
        """Its Deployment tells of as many pods as are seen. Else the cache, or the Deployment's status, is behind."""
        if self.deployment is None or not observed(self.deployment):
            return False
        return bool((self.deployment.get("status") or {}).get("replicas", 0) == len(self.alive))

    @property
    def leaving(self) -> int:
        """Pods on their way out, the cache's or its Deployment's number of them."""
        told: int = ((self.deployment or {}).get("status") or {}).get("terminatingReplicas", 0)
        return max(sum(pod.terminating for pod in self.pods), told)

    @property
    def grace_seconds(self) -> int:
        """How long a leaving pod may take."""
        template = ((self.deployment or {}).get("spec") or {}).get("template") or {}
        return int((template.get("spec") or {}).get("terminationGracePeriodSeconds", 0))

    @property
    def failed_creation(self) -> Mapping[str, str] | None:
        """The condition that says that pods can't even be created, such as for a quota."""
        return self._condition("ReplicaFailure", "True")

    @property
    def deadline_exceeded(self) -> str | None:
        """What its Deployment says where it hasn't got on for longer than its own deadline."""
        condition = self._condition("Progressing", "False")
        return None if condition is None else str(condition.get("message", ""))

    def _condition(self, kind: str, status: str) -> Mapping[str, str] | None:
        present = ((self.deployment or {}).get("status") or {}).get("conditions") or ()
        return next((dict(each) for each in present if each["type"] == kind and each["status"] == status), None)


def _whole(quantity: object) -> int:
    """How many GPUs a limit asks for. Whoever writes that in another way than digits gets one."""
    return int(str(quantity)) if str(quantity).isdecimal() else 1
