"""One DuetDeployment under test on the local cluster: how to change it, and all that can be seen of it.

Invariant: tests go through what any user has, the Kubernetes API and the Service's address. Numbers are small so that a
modest load needs several workers: a simulated slice takes about 50 ms a token and 0.2 s for a prompt of 400 tokens, so
one decode worker holds 36 tokens/s, three 150, and one prefill worker 1,500 prompt tokens/s, two 3,200.
"""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.support.duet_objects import Document, Patch, patched
from tests.support.steady_load import Lengths, SteadyLoad
from tests.support.waiting import until

from duet_dev.cluster import Cluster
from duet_dev.kubeapi import Api, ApiError
from duet_engine.protocol import ENGINE_PORT, GATEWAY_ADMIN_PORT
from duet_operator.cluster import DEPLOYMENT, DUET, EVENT, POD, Kind
from duet_operator.resources.labels import OWNER, ROLE

NOT_FOUND = 404
READY_SECONDS = 120.0
SETTLE_SECONDS = 120.0
CHANGE_SECONDS = 90.0
MODEL = "Qwen/Qwen3-8B"
INTERVAL_SECONDS = 1
PROMPT_TOKENS = 400
COLD_START_SECONDS = 1

ENGINE_ARGUMENTS = [
    *("--gpu", "a100-1g.20gb", "--max-running-requests", "4"),
    *("--cold-start-seconds", str(COLD_START_SECONDS)),
]


def small_object(*, name: str, namespace: str) -> Document:
    """A DuetDeployment that starts in seconds and needs several workers for a few requests per second."""
    gpu = {"resourceName": "nvidia.com/mig-2g.20gb"}
    return {
        "apiVersion": DUET.api_version,
        "kind": DUET.name,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"id": MODEL},
            "slo": {"ttftMilliseconds": 2000, "itlMilliseconds": 100, "attainmentBasisPoints": 9500},
            "engine": {"image": "duet-simulated-engine:dev", "args": ENGINE_ARGUMENTS},
            "pools": {
                "prefill": {"minReplicas": 1, "maxReplicas": 4, "gpu": gpu},
                "decode": {"minReplicas": 1, "maxReplicas": 5, "gpu": gpu},
            },
            "scaling": {
                "intervalSeconds": INTERVAL_SECONDS,
                "coldStartSeconds": 3,
                "pendingDeadlineSeconds": 10,
                "scaleDown": {"stabilizationSeconds": 4},
            },
            "drain": {"timeoutSeconds": 60},
            "gateway": {"replicas": 1},
        },
    }


@dataclass(frozen=True, slots=True)
class Serving:
    """The object, its children and its Service."""

    cluster: Cluster
    api: Api
    namespace: str
    name: str = "served"

    # --- change it ---

    async def apply(self, patch: Patch | None = None) -> None:
        """`kubectl apply` of the small object with these fields set."""
        document = patched(small_object(name=self.name, namespace=self.namespace), patch or {})
        await asyncio.to_thread(self.cluster.kubectl, "apply", "-f", "-", input=json.dumps(document))

    async def apply_and_wait(self, patch: Patch | None = None) -> None:
        """The same, until it's Ready, its gateways have told their first demand and no worker is on its way."""
        await self.apply(patch)
        for type_ in ("Ready", "SignalsFresh"):
            await self.until(f"{type_} is True", _says(type_), seconds=READY_SECONDS)
        await self.settled()

    async def change(self, spec: Document) -> None:
        """A merge patch of the spec, as a person edits it."""
        await self.api.patch(DUET.path(self.namespace, self.name), {"spec": spec})

    async def delete(self) -> None:
        """`kubectl delete`, which returns when the object is gone; its children go by themselves."""
        await asyncio.to_thread(self.cluster.kubectl, "delete", "-n", self.namespace, f"duet/{self.name}")

    def load(self, *lengths: Lengths) -> SteadyLoad:
        """Requests through the Service; lengths are tokens of prompt and answer."""
        port = self.cluster.forward(f"service/{self.namespace}/{self.name}:80")
        return SteadyLoad(f"http://127.0.0.1:{port}", MODEL, lengths or ((PROMPT_TOKENS, 20),))

    # --- look at it ---

    async def object(self) -> Document:
        return await self.api.get(DUET.path(self.namespace, self.name))

    async def until(self, what: str, holds: Callable[[Document], bool], *, seconds: float = CHANGE_SECONDS) -> Document:
        """The object as soon as this holds."""

        async def attempt() -> Document | None:
            found = await self.object()
            return found if holds(found) else None

        return await until(what, attempt, seconds=seconds)

    async def settled(self) -> Document:
        """The object once every wanted worker is ready and none is on its way in or out."""
        return await self.until("both pools have settled", _settled, seconds=SETTLE_SECONDS)

    async def replicas(self, role: str) -> int:
        """What a pool's Deployment asks for."""
        found = await self.api.get(DEPLOYMENT.path(self.namespace, f"{self.name}-{role}"))
        count: int = found["spec"]["replicas"]
        return count

    async def items(self, kind: Kind) -> list[Document]:
        """What there is of a kind that bears the object's name as label."""
        listed = await self.api.get(kind.path(self.namespace), labelSelector=f"{OWNER}={self.name}")
        found: list[Document] = listed["items"]
        return found

    async def pods(self, role: str) -> list[Document]:
        """Living pods of a pool or of the gateway."""
        found = await self.items(POD)
        return [
            pod
            for pod in found
            if pod["metadata"]["labels"][ROLE] == role and "deletionTimestamp" not in pod["metadata"]
        ]

    async def events(self) -> list[Document]:
        """Events about the object itself."""
        listed = await self.api.get(EVENT.path(self.namespace))
        return [event for event in listed["items"] if event["regarding"].get("kind") == DUET.name]

    async def exists(self, kind: Kind, name: str) -> bool:
        try:
            await self.api.get(kind.path(self.namespace, name))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return False
        return True

    async def engine(self, pod: Document, document: str) -> Document:
        """What an engine tells only those whom it knows: asked inside of its container."""
        command = ("exec", pod["metadata"]["name"], "-n", self.namespace, "--", "duet-engine", "show", document)
        shown = await asyncio.to_thread(self.cluster.kubectl, *command)
        told: Document = json.loads(shown.stdout)
        return told

    async def requests_held(self, pod: Document) -> int:
        """What is running or queued on an engine."""
        samples = re.findall(r"^sglang:num_(?!\w*failed)\w+_reqs\{.*\} (\S+)$", await self.metrics(pod), re.MULTILINE)
        return round(sum(map(float, samples)))

    async def metrics(self, pod: Document) -> str:
        """Of an engine, which need no token."""
        return await self.api.get_text(
            f"{POD.path(self.namespace, pod['metadata']['name'])}:{ENGINE_PORT}/proxy/metrics"
        )

    async def engine_without_token(self, pod: Document, path: str) -> Document:
        """What an engine tells anybody, asked through the API server."""
        return await self._ask(pod, ENGINE_PORT, path)

    async def gateway(self, pod: Document, path: str) -> Document:
        """A document of a gateway's admin port, asked through the API server."""
        return await self._ask(pod, GATEWAY_ADMIN_PORT, path)

    async def change_gateway(self, pod: Document, path: str) -> Document:
        """What a gateway answers to somebody without a token who wants to change something there."""
        return await self.api.post(
            f"{POD.path(self.namespace, pod['metadata']['name'])}:{GATEWAY_ADMIN_PORT}/proxy{path}", {}
        )

    async def _ask(self, pod: Document, port: int, path: str) -> Document:
        return await self.api.get(f"{POD.path(self.namespace, pod['metadata']['name'])}:{port}/proxy{path}")

    def described(self) -> str:
        """The object, its pods and all events, for a person who looks for what went wrong."""
        look: Sequence[tuple[str, ...]] = (
            ("get", "duet", "-o", "yaml"),
            ("get", "pods,deployments", "-o", "wide"),
            ("get", "events", "--sort-by=.metadata.creationTimestamp"),
            ("logs", f"deployment/{self.name}-gateway", "--tail=15"),
        )
        shown = [self.cluster.kubectl(*command, "-n", self.namespace, check=False) for command in look]
        return "\n".join(
            f"$ kubectl {' '.join(command)}\n{result.stdout}{result.stderr}"
            for command, result in zip(look, shown, strict=True)
        )


def status(found: Document) -> Document:
    """The object's status, empty before the first pass."""
    reported: Document = found.get("status", {})
    return reported


def condition(found: Document, type_: str) -> str:
    """True, False or Unknown; empty before it's reported."""
    return str(_condition(found, type_).get("status", ""))


def explained(found: Document, type_: str) -> tuple[str, str]:
    """Reason and message of a condition."""
    shown = _condition(found, type_)
    return shown.get("reason", ""), shown.get("message", "")


def _condition(found: Document, type_: str) -> Document:
    return next((each for each in status(found).get("conditions", ()) if each["type"] == type_), {})


def counts(found: Document, field: str) -> tuple[int, int]:
    """One number of the prefill and of the decode pool's status, such as `ready`."""
    return tuple(status(found).get(role, {}).get(field, 0) for role in ("prefill", "decode"))  # type: ignore[return-value]


def _says(type_: str) -> Callable[[Document], bool]:
    return lambda found: condition(found, type_) == "True"


def _settled(found: Document) -> bool:
    fresh = status(found).get("observedGeneration") == found["metadata"]["generation"]
    moving = [counts(found, field) for field in ("starting", "draining", "replacing")]
    return fresh and not any(map(any, moving)) and counts(found, "ready") == counts(found, "desired") != (0, 0)


async def ready_pods(serving: Serving, role: str) -> list[Document]:
    """Living pods whose Ready condition is True."""
    return [
        pod
        for pod in await serving.pods(role)
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))
    ]
