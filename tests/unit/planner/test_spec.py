"""What planning reads of a DuetDeployment."""

import pytest
from tests.support.duet_objects import minimal, patched

from duet_operator.api.v1alpha1 import parse
from duet_operator.planner.spec import for_classes, plan_spec, while_awake
from duet_operator.planner.types import PoolBounds


def test_smallest_object() -> None:
    spec = plan_spec(parse(minimal()).spec)
    assert spec.objective.ttft_seconds == 0.8
    assert spec.objective.itl_seconds == 0.05
    assert spec.objective.ttft_unloaded_ratio is None
    assert spec.attainment_goal == 0.99
    assert spec.prefill == PoolBounds(min_replicas=0, max_replicas=8)
    assert spec.decode == PoolBounds(min_replicas=1, max_replicas=8)
    assert spec.deflection_enabled
    assert (spec.interval_seconds, spec.stabilization_seconds, spec.cold_start_guess_seconds) == (5, 180, 120)
    assert spec.max_gpus is None


def test_every_field_arrives_in_base_units() -> None:
    document = patched(
        minimal(),
        {
            "spec.slo.ttftUnloadedPercent": 250,
            "spec.slo.attainmentBasisPoints": 9950,
            "spec.engine.tensorParallelSize": 2,
            "spec.pools.prefill": {"minReplicas": 2, "maxReplicas": 6, "replicas": 3, "tensorParallelSize": 4},
            "spec.pools.decode": {"minReplicas": 3, "maxReplicas": 9},
            "spec.deflection.mode": "Off",
            "spec.scaling": {
                "mode": "Manual",
                "intervalSeconds": 10,
                "maxGPUs": 40,
                "coldStartSeconds": 300,
                "scaleDown": {"stabilizationSeconds": 600},
            },
        },
    )
    spec = plan_spec(parse(document).spec)
    assert spec.objective.ttft_unloaded_ratio == 2.5
    assert spec.attainment_goal == 0.995
    assert spec.prefill == PoolBounds(min_replicas=2, max_replicas=6, gpus_per_replica=4, manual_replicas=3)
    assert spec.decode == PoolBounds(min_replicas=3, max_replicas=9, gpus_per_replica=2)
    assert not spec.deflection_enabled
    assert (spec.interval_seconds, spec.stabilization_seconds, spec.cold_start_guess_seconds) == (10, 600, 300)
    assert spec.max_gpus == 40


CLASSES = [
    {"name": "voice", "ttftMilliseconds": 300, "itlMilliseconds": 60, "weight": 9},
    {"name": "batch", "ttftMilliseconds": 60_000, "weight": 1},
]


@pytest.mark.parametrize(
    ("in_use", "ttft_seconds", "itl_seconds"),
    [
        ((), 0.8, 0.05),
        (("default",), 0.8, 0.05),
        (("voice",), 0.3, 0.06),
        (("batch",), 60.0, 0.05),
        (("default", "voice", "batch"), 0.3, 0.05),
        (("batch", "since-removed"), 0.8, 0.05),
    ],
)
def test_workers_are_sized_for_the_strictest_class_in_use(
    in_use: tuple[str, ...], ttft_seconds: float, itl_seconds: float
) -> None:
    spec = plan_spec(parse(patched(minimal(), {"spec.slo.classes": CLASSES})).spec)
    objective = for_classes(spec, in_use).objective
    assert (objective.ttft_seconds, objective.itl_seconds) == (ttft_seconds, itl_seconds)


@pytest.mark.parametrize(("least", "quiet_seconds", "kept"), [(0, 0.0, 1), (0, 89.9, 1), (0, 90.0, 0), (2, 1e6, 2)])
def test_the_last_decode_worker_stays_until_it_has_been_quiet(least: int, quiet_seconds: float, kept: int) -> None:
    changes = {"spec.pools.decode.minReplicas": least, "spec.scaling.idleSeconds": 90}
    spec = while_awake(plan_spec(parse(patched(minimal(), changes)).spec), quiet_seconds=quiet_seconds)
    assert spec.decode.min_replicas == kept
