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
HTTP_PORT = 8080
PASSES = "duet_operator_passes_total"
START_SECONDS = 180.0
GONE_SECONDS = 60.0


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

    async def figures(self) -> dict[str, float]:
        """Its metrics, by name and labels as they stand in the exposition."""
        (pod,) = json.loads(await self._kubectl("get", "pods", "-o", "json"))["items"]
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod['metadata']['name']}:{HTTP_PORT}/proxy/metrics"
        shown = await self._kubectl("get", f"--raw={path}")
        samples = (line.rpartition(" ") for line in shown.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def passes(self) -> int:
        """Passes of the control loop so far, over all objects."""
        return int(sum(value for name, value in (await self.figures()).items() if name.startswith(PASSES)))

    def log(self, *, lines: int = -1) -> str:
        """What its present pod has logged."""
        shown = self.cluster.kubectl(
            "logs", f"--namespace={OPERATOR_NAMESPACE}", f"deployment/{DEPLOYMENT}", f"--tail={lines}", check=False
        )
        return shown.stdout + shown.stderr
