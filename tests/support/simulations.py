"""Small files to simulate, and one small simulated run that tests of reports share."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from duet_engine.simulator.scenario import EndedRequest, Observation, PoolView
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

ENDED = EndedRequest(
    class_name="default",
    input_tokens=900,
    cached_tokens=100,
    output_tokens=50,
    succeeded=True,
    ttft_seconds=0.4,
    tpot_seconds=0.02,
    ttft_met=True,
    itl_met=True,
    deflected=False,
)
SEEN = Observation(
    now_seconds=5.0,
    window_seconds=5.0,
    arrived_input_tokens=(1000,) * 19 + (5000,),
    ended=(ENDED,) * 8 + (replace(ENDED, ttft_seconds=2.0, ttft_met=False, deflected=True),) * 2,
    output_tokens=400,
    waiting_requests=3,
    waiting_tokens=2700,
    prefill=PoolView(replicas=2, ready=1, starting=1, draining=0, queued_prefill_tokens=500),
    decode=PoolView(replicas=1, ready=1, starting=0, draining=0, running_requests=7, headroom_tokens_per_second=900.0),
    cold_starts_seconds=(21.0,),
)
"""One pass of a planner over small, uneven pools."""


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
