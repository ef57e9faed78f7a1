"""The operator under test: installed by Helm as a user does it, stopped and killed at will.

Invariant: one operator for all tests of a run, so whoever stops it starts it again.
"""

import asyncio
import json
from dataclasses import dataclass

from tests.support.waiting import until

from duet_dev.cluster import Cluster
from duet_dev.demo.stages import OPERATOR_NAMESPACE, install_operator

DEPLOYMENT = "duet-operator"
START_SECONDS = 30.0
GONE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class OperatorRelease:
    """The chart's release."""

    cluster: Cluster

    def install(self, *values: str) -> None:
        install_operator(self.cluster, values=values)

    async def start(self) -> None:
        """Until its pod is ready."""
        await self._kubectl("scale", f"deployment/{DEPLOYMENT}", "--replicas=1")
        await self._kubectl("rollout", "status", f"deployment/{DEPLOYMENT}", f"--timeout={START_SECONDS:g}s")

    async def stop(self) -> None:
        """As a node drain or an upgrade ends it: SIGTERM, and time to say goodbye."""
        await self._kubectl("scale", f"deployment/{DEPLOYMENT}", "--replicas=0")
        await self._gone()

    async def kill(self) -> None:
        """As a lost node ends it: SIGKILL, without a word."""
        await self._kubectl("scale", f"deployment/{DEPLOYMENT}", "--replicas=0")
        await self._kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        await self._gone()

    async def _gone(self) -> None:
        async def none_left() -> bool:
            return not json.loads(await self._kubectl("get", "pods", "-o", "json"))["items"]

        await until("no operator pod is left", none_left, seconds=GONE_SECONDS)

    async def _kubectl(self, *arguments: str) -> str:
        command = [*arguments, f"--namespace={OPERATOR_NAMESPACE}"]
        return (await asyncio.to_thread(self.cluster.kubectl, *command)).stdout

    def log(self, *, lines: int = -1) -> str:
        """What its present pod has logged."""
        shown = self.cluster.kubectl(
            "logs", f"--namespace={OPERATOR_NAMESPACE}", f"deployment/{DEPLOYMENT}", f"--tail={lines}", check=False
        )
        return shown.stdout + shown.stderr
