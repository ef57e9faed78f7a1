"""Small files to simulate, and one small simulated run that tests of reports share."""

from functools import cache
from pathlib import Path
from typing import Any

from duet_operator.simulation.documents import read_documents
from duet_operator.simulation.outcome import Outcome
from duet_operator.simulation.resolve import study
from duet_operator.simulation.runs import run
from duet_operator.simulation.study import Study
from duet_operator.simulation.variants import variant, variant_of

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "duetserve.io/v1alpha1",
    "kind": "DuetDeployment",
    "metadata": {"name": "served"},
    "spec": {
        "model": {"id": "Qwen/Qwen3-8B"},
        "slo": {"ttftMilliseconds": 800, "itlMilliseconds": 50},
        "pools": {"prefill": {"minReplicas": 1}},
        "scaling": {"coldStartSeconds": 20, "scaleDown": {"stabilizationSeconds": 30}},
    },
}
TRAFFIC = {"requestsPerSecond": 3, "inputTokens": {"mean": 1000, "variation": 1}, "outputTokens": 60}
WORKLOAD = {"workload": {"traffic": TRAFFIC, "minutes": 1}, "gpu": "a100-sxm", "seed": 3}
SCENARIO: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "slo": {"ttftMilliseconds": 800, "itlMilliseconds": 50},
    "pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 1}},
    **WORKLOAD,
}


def study_of(*documents: dict[str, Any], base: Path = Path()) -> Study:
    """The study of a file with these documents."""
    deployment, simulation = read_documents(documents, source="file.yaml")
    return study(deployment, simulation, name="file", base=base, seed=simulation.seed)


@cache
def compared() -> tuple[Study, tuple[Outcome, ...]]:
    """A study under a planner with a burst in the middle, and the same with fixed counts and no deflection."""
    burst = {"ramp": [[0, 1], [0.4, 1], [0.5, 25], [1, 25], [1.1, 1], [2, 1]]}
    traffic = {name: value for name, value in TRAFFIC.items() if name != "requestsPerSecond"} | burst
    asked = study_of(DEPLOYMENT, WORKLOAD | {"workload": {"traffic": traffic}})
    variants = (variant_of(asked), variant("fixed+round-robin", asked))
    return asked, tuple(run(asked, each)[0] for each in variants)
