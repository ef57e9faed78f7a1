"""Which engines a demo runs: simulated ones with the step times of a GPU, or the real SGLang on this machine's CPU.

Invariant: all that differs between the two is a value here; what is done with an object doesn't look which it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from duet_dev import engine_environment
from duet_dev.cluster import Cluster
from duet_dev.config import DEFAULT_CAPACITY, ClusterConfig, Node
from duet_dev.demo.sample import CODE, CONVERSATION, TINY, Kind
from duet_dev.demo.stages import SIMULATED_ENGINE
from duet_dev.errors import DevError
from duet_dev.paths import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
SGLANG_EXAMPLE = EXAMPLES / "demo-sglang"
CALIBRATION = SGLANG_EXAMPLE / "calibration.json"
CALIBRATION_MAP, CLAIM = "tiny-llama-calibration", "tiny-models"
CPU_RESOURCE = "duetserve.io/cpu-engine"
MOST_ENGINES = 4
"""What 12 GB of memory hold."""
COPY_SECONDS = 60


def _nothing(_: Cluster) -> None:
    """There is nothing to prepare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """One choice."""

    name: str
    manifest: Path
    image: str
    sample: Sequence[Kind]
    word: str
    """One token of the model's tokenizer."""
    ready_timeout_seconds: int
    highest_loop_lag_seconds: float
    """Beyond it the times of a run mean nothing."""
    judged_by_sample: bool
    """Whether the sample's attainment and bill are known to be possible, so that missing them is a failure."""
    ensure: Callable[[], None] = field(default=lambda: None)
    """Before anything starts."""
    prepare: Callable[[Cluster], None] = _nothing
    """Before the object is applied."""
    config: Callable[[str], ClusterConfig] = ClusterConfig


def sglang_cluster(name: str) -> ClusterConfig:
    """One node that has room for so many engines as this machine."""
    node = Node("cpu-0", capacity={**DEFAULT_CAPACITY, CPU_RESOURCE: str(MOST_ENGINES)})
    # Its ranks look for the network device that has the pod's address, and here no device has any but loopback's.
    return ClusterConfig(name, nodes=(node,), environment={"GLOO_SOCKET_IFNAME": "lo"})


def prepare_sglang(cluster: Cluster) -> None:
    """The model on its claim, and what `duet calibrate` found on a CPU, as any user would bring them."""
    cluster.kubectl("apply", "-f", str(SGLANG_EXAMPLE / "claim.yaml"))
    for document in (_copy(engine_environment.model_folder("tiny-llama")), _calibration()):
        cluster.kubectl("apply", "-f", "-", input=json.dumps(document))
    waiting = ("wait", "--for=jsonpath={.status.phase}=Succeeded", f"--timeout={COPY_SECONDS}s", "pod/fill-models")
    if (waited := cluster.kubectl(*waiting, check=False)).returncode:
        raise DevError(f"the model wasn't copied to its claim: {waited.stderr.strip()}")


def _copy(folder: Path) -> dict[str, object]:
    """A pod that copies the model; pods of the local cluster see this machine's files."""
    container = {
        "name": "copy",
        "image": "busybox",
        "command": ["cp", "-r", str(folder), "/models/"],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}}]
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fill-models"}, "spec": spec}


def _calibration() -> dict[str, object]:
    data = {CALIBRATION.name: CALIBRATION.read_text()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CALIBRATION_MAP}, "data": data}


SIMULATED = Engines(
    name="simulated",
    manifest=EXAMPLES / "demo.yaml",
    image=SIMULATED_ENGINE,
    sample=(CODE, CONVERSATION),
    word=" the",
    ready_timeout_seconds=120,
    highest_loop_lag_seconds=0.020,
    judged_by_sample=True,
)
SGLANG = Engines(
    name="sglang",
    manifest=SGLANG_EXAMPLE / "deployment.yaml",
    image="duet-engine:dev",
    sample=(TINY,),
    word=" ba",
    ready_timeout_seconds=480,
    highest_loop_lag_seconds=0.200,
    judged_by_sample=False,
    ensure=engine_environment.ensure,
    prepare=prepare_sglang,
    config=sglang_cluster,
)
BY_NAME = {engines.name: engines for engines in (SIMULATED, SGLANG)}
