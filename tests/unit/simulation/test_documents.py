"""Files to simulate: both forms are understood, and every mistake is named by its field."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.simulations import DEPLOYMENT, SCENARIO, TRAFFIC, WORKLOAD, study_of

from duet_engine.protocol import Role
from duet_engine.simulator.scenario import LocalPrefill
from duet_operator.planner.types import Counts
from duet_operator.simulation.documents import InvalidFileError
from duet_operator.simulation.variants import variant, variant_of


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def test_a_deployment_brings_its_own_bounds_objectives_and_planner() -> None:
    study = study_of(DEPLOYMENT, WORKLOAD)
    assert study.spec.objective.ttft_seconds == 0.8
    assert (study.spec.prefill.max_replicas, study.spec.decode.min_replicas) == (8, 1)
    assert study.start == Counts(1, 1)
    assert study.cold_start.seconds == 20
    assert variant_of(study).name == "duet"
    scenario = study.scenario(variant_of(study))
    assert scenario.planner is not None
    assert scenario.decode.local_prefill is LocalPrefill.SAFE


def test_a_deployment_that_only_recommends_keeps_its_counts() -> None:
    spec = DEPLOYMENT["spec"] | {"scaling": {"mode": "Recommend"}}
    study = study_of(DEPLOYMENT | {"spec": spec}, WORKLOAD | {"start": {"prefill": 2, "decode": 3}})
    assert variant_of(study).name == "fixed"
    assert study.scenario(variant_of(study)).planner is None
    assert study.start == Counts(2, 3)


def test_a_deployment_of_simulated_engines_says_its_gpu_itself() -> None:
    spec = DEPLOYMENT["spec"] | {"engine": {"args": ["--gpu", "a100-3g.40gb"]}}
    study = study_of(DEPLOYMENT | {"spec": spec}, without(WORKLOAD, "gpu"))
    assert study.decode.hardware.gpu == "a100-3g.40gb"


def test_deflection_off_lets_no_decode_worker_prefill() -> None:
    off = {"deflection": {"mode": "Off"}, "pools": {"prefill": {"minReplicas": 1}}}
    study = study_of(DEPLOYMENT | {"spec": DEPLOYMENT["spec"] | off}, WORKLOAD)
    assert study.scenario(variant_of(study)).decode.local_prefill is None


def test_deflection_and_classes_are_read_as_the_gateway_reads_them() -> None:
    paper = {"deflection": {"mode": "Paper", "alphaPercent": 150, "betaPercent": 70}}
    deployed = study_of(DEPLOYMENT | {"spec": DEPLOYMENT["spec"] | paper}, WORKLOAD)
    rule = deployed.scenario(variant_of(deployed)).rule
    assert (rule.mode, rule.alpha, rule.beta) == ("Paper", 1.5, 0.7)
    slo = SCENARIO["slo"] | {"classes": [{"name": "batch", "ttftMilliseconds": 5000}]}
    plain = study_of(SCENARIO | paper | {"slo": slo})
    scenario = plain.scenario(variant_of(plain))
    assert scenario.rule == rule
    assert (scenario.objective_of("batch").ttft_seconds, scenario.objective_of("batch").itl_seconds) == (5.0, 0.05)
    assert scenario.objective_of("default").ttft_seconds == 0.8
    off = study_of(SCENARIO | {"deflection": {"mode": "Off"}})
    assert off.scenario(variant_of(off)).decode.local_prefill is None


def test_a_plain_scenario_stands_alone_with_fixed_counts() -> None:
    study = study_of(SCENARIO)
    assert (study.start, variant_of(study).name, study.seed) == (Counts(1, 1), "fixed", 3)
    assert study.bases["prefill"].known
    assert study.warm_up_seconds(moving=False) == 0


def test_pools_may_have_their_own_gpus_and_unified_workers_stand_alone() -> None:
    pools = {"prefill": {"gpu": "h100-sxm"}, "decode": {"gpu": "h200-sxm", "tensorParallelSize": 2}}
    study = study_of(SCENARIO | {"pools": pools})
    assert study.prefill is not None
    assert (str(study.prefill.hardware), str(study.decode.hardware)) == ("h100-sxm", "2 x h200-sxm")
    unified = study_of(SCENARIO | {"pools": {"unified": {"replicas": 2}}, "localPrefill": "mixed"})
    scenario = unified.scenario(variant_of(unified))
    assert (scenario.prefill, scenario.decode.role, scenario.decode.local_prefill) == (None, Role.UNIFIED, "mixed")


def test_the_truth_may_be_slower_than_policies_believe() -> None:
    study = study_of(SCENARIO | {"modelErrorPercent": 20})
    pool = study.scenario(variant_of(study)).decode
    truth = pool.steps.prompt_seconds(1000, chunk_tokens=8192)
    assert truth == pytest.approx(1.2 * pool.policy_steps.prompt_seconds(1000, chunk_tokens=8192))


def test_a_planner_is_judged_after_a_warm_up_when_the_run_is_long() -> None:
    long = WORKLOAD | {"workload": {"traffic": TRAFFIC, "minutes": 20}}
    study = study_of(DEPLOYMENT, long)
    assert study.scenario(variant_of(study)).warm_up_seconds == 300
    assert study.scenario(variant("fixed", study)).warm_up_seconds == 0
    assert study_of(DEPLOYMENT, long | {"warmUpMinutes": 1}).warm_up_seconds(moving=True) == 60


def test_a_calibration_file_makes_steps_measured(tmp_path: Path) -> None:
    from duet_engine.perf.efficiencies import shipped, to_document

    document = to_document(shipped()["a100-sxm"]) | {"bases": {"prefill": "measured", "decode": "measured"}}
    (tmp_path / "mine.json").write_text(json.dumps({"a100-sxm": document}))
    study = study_of(SCENARIO | {"calibration": "mine.json"}, base=tmp_path)
    assert study.bases["decode"] == "measured"


@pytest.mark.parametrize(
    ("documents", "problem"),
    [
        ([], "is empty"),
        ([["a list"]], "a document is list"),
        ([DEPLOYMENT, DEPLOYMENT], "expected one DuetDeployment at most"),
        ([{"kind": "Deployment"}], "expected one DuetDeployment at most, found 'Deployment'"),
        ([WORKLOAD, WORKLOAD], "two documents that describe a simulation"),
        ([DEPLOYMENT, WORKLOAD | {"model": "x"}], "model: comes from the DuetDeployment's spec; remove it here"),
        ([WORKLOAD], "model, slo, pools: is required without a DuetDeployment"),
        ([DEPLOYMENT, without(WORKLOAD, "workload")], "workload: is required; add it to the file or give --trace"),
        ([DEPLOYMENT, without(WORKLOAD, "gpu")], "gpu: say which GPU the workers have"),
        ([DEPLOYMENT | {"spec": {"model": {"id": "x"}}}, WORKLOAD], "spec.slo"),
        ([SCENARIO | {"gpu": "h300"}], "decode workers: unknown GPU 'h300'"),
        ([SCENARIO | {"model": "nobody/nothing"}], "decode workers: unknown model"),
        ([SCENARIO | {"model": "meta-llama/Llama-3.1-70B"}], "leaves no room for KV on 1 x a100-sxm"),
        ([SCENARIO | {"calibration": "gone.json"}], "calibration: "),
        ([SCENARIO | {"start": {"prefill": 1, "decode": 1}}], "start: is for a DuetDeployment"),
        ([SCENARIO | {"warmup": 3}], "file.yaml: warmup: isn't a field"),
        ([SCENARIO | {"pools": {"prefill": {}}}], "pools: give decode"),
        ([SCENARIO | {"pools": {"decode": {"replicas": 3, "maxReplicas": 2}}}], "pools.decode: replicas must lie"),
        ([SCENARIO | {"workload": {}}], "workload: give exactly one of trace, traffic and classes"),
    ],
)
def test_mistakes_are_named(documents: list[Any], problem: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        study_of(*documents)
    assert problem in str(caught.value)
