"""What each choice of engines brings to the demo fits together."""

import json

import pytest

from duet_dev.demo.engines import (
    BY_NAME,
    CALIBRATION,
    CALIBRATION_MAP,
    CLAIM,
    CPU_RESOURCE,
    MOST_ENGINES,
    SGLANG,
    Engines,
)
from duet_dev.demo.sample import bundled_sample
from duet_dev.demo.stages import read_object
from duet_engine.perf.efficiencies import from_file
from duet_engine.perf.hardware import find_gpu


@pytest.mark.parametrize("engines", BY_NAME.values(), ids=BY_NAME)
def test_the_object_runs_the_engines_image_and_the_sample_has_a_lull(engines: Engines) -> None:
    spec = read_object(engines.manifest).spec
    assert spec.engine.image == engines.image
    times = [arrival.time_seconds for arrival in bundled_sample(kinds=engines.sample)]
    busiest = max(sum(begin <= time < begin + 20 for time in times) for begin in range(0, 200, 10))
    quietest = min(sum(begin <= time < begin + 20 for time in times) for begin in range(60, 180, 10))
    assert busiest > 3 * quietest


def test_real_engines_never_need_more_than_the_machine_is_said_to_hold() -> None:
    pools = read_object(SGLANG.manifest).spec.pools
    assert pools.prefill.max_replicas + pools.decode.max_replicas == MOST_ENGINES
    assert pools.prefill.gpu.resource_name == pools.decode.gpu.resource_name == CPU_RESOURCE


def test_real_engines_get_the_model_and_a_calibration_that_they_can_read() -> None:
    spec = read_object(SGLANG.manifest).spec
    assert spec.model.source is not None and spec.model.source.persistent_volume_claim is not None
    assert spec.model.source.persistent_volume_claim.claim_name == CLAIM
    volumes = (spec.engine.template or {})["spec"]["volumes"]
    assert [volume["configMap"]["name"] for volume in volumes] == [CALIBRATION_MAP]
    variables = {variable.name: variable.value for variable in spec.engine.env}
    assert (variables["DUET_CALIBRATION"] or "").endswith(f"/{CALIBRATION.name}")
    assert from_file(json.loads(CALIBRATION.read_text()), find_gpu("cpu")).source
