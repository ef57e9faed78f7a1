"""The models: what a reader gets from an object, and what it's told about a bad one."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.duet_objects import minimal, patched

from duet_engine.protocol import Role
from duet_operator.api.v1alpha1 import Condition, DuetDeployment, DuetStatus, InvalidObjectError, parse


def parsed(**patch: Any) -> DuetDeployment:
    return parse(patched(minimal(), {path.replace("__", "."): value for path, value in patch.items()}))


def test_smallest_object_has_every_effective_value() -> None:
    spec = parse(minimal()).spec
    assert (spec.pools.prefill.min_replicas, spec.pools.prefill.max_replicas) == (0, 8)
    assert (spec.pools.decode.min_replicas, spec.pools.decode.max_replicas) == (1, 8)
    assert spec.slo.attainment_basis_points == 9900
    assert (spec.scaling.mode, spec.scaling.interval_seconds, spec.scaling.max_gpus) == ("Auto", 5, None)
    assert (spec.drain.timeout_seconds, spec.drain.on_timeout) == (600, "Keep")
    assert (spec.gateway.enabled, spec.gateway.replicas) == (True, 2)


def test_fields_that_nothing_serves_yet_read_as_their_documented_defaults() -> None:
    spec = parse(minimal()).spec
    assert (spec.multiplexing.mode, spec.multiplexing.max_look_ahead) == ("Auto", 8)
    assert spec.routing.policy == "Auto"
    assert (spec.deflection.alpha_percent, spec.deflection.beta_percent) == (130, None)
    assert (spec.rollout.max_surge, spec.rollout.max_unavailable) == (0, 1)
    assert (spec.scaling.idle_seconds, spec.scaling.spare_replicas, spec.scaling.schedule) == (600, 0, ())


def test_served_name_is_the_id_unless_given() -> None:
    assert parse(minimal()).spec.model.public_name == "Qwen/Qwen3-8B"
    assert parsed(spec__model__servedName="chat").spec.model.public_name == "chat"


def test_a_pool_overrides_the_engines_tensor_parallel_size() -> None:
    spec = parsed(spec__engine__tensorParallelSize=4, spec__pools__decode__tensorParallelSize=2).spec
    assert (spec.tensor_parallel_size(Role.PREFILL), spec.tensor_parallel_size(Role.DECODE)) == (4, 2)


def test_gpu_resource_is_whole_gpus_unless_named() -> None:
    spec = parsed(spec__pools__decode__gpu__resourceName="nvidia.com/mig-3g.40gb").spec
    assert spec.pool(Role.PREFILL).gpu.effective_resource_name == "nvidia.com/gpu"
    assert spec.pool(Role.DECODE).gpu.effective_resource_name == "nvidia.com/mig-3g.40gb"


@pytest.mark.parametrize(
    ("mode", "gateway", "deflects"), [("Auto", True, True), ("Off", True, False), ("Auto", False, False)]
)
def test_deflection_needs_its_mode_and_a_gateway(mode: str, gateway: bool, deflects: bool) -> None:
    assert parsed(spec__deflection__mode=mode, spec__gateway__enabled=gateway).spec.deflects is deflects


def test_fields_from_a_newer_version_are_ignored_at_every_depth() -> None:
    newer = patched(minimal(), {"spec.future": {"a": 1}, "spec.slo.future": [1], "status.future": "x"})
    assert parse(newer).spec == parse(minimal()).spec


def test_objects_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse(minimal()).spec.scaling.mode = "Manual"  # type: ignore[misc]


class ReadOnlyView(Mapping[str, Any]):
    """A mapping that isn't a dict, as watch frameworks hand out."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        value = self.content[key]
        return ReadOnlyView(value) if isinstance(value, dict) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


def test_any_mapping_is_read() -> None:
    assert parse(ReadOnlyView(minimal())) == parse(minimal())


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": {}}, "spec.model: Field required; spec.slo: Field required"),
        ({"spec.slo": {"itlMilliseconds": 50}}, "spec.slo.ttftMilliseconds: Field required"),
        ({"spec.slo.ttftMilliseconds": "800"}, "spec.slo.ttftMilliseconds: Input should be a valid integer"),
        ({"spec.slo.ttftMilliseconds": 0}, "spec.slo.ttftMilliseconds: Input should be greater than or equal to 1"),
        ({"spec.engine.env": [{"name": "A"}, {"value": "b"}]}, r"spec.engine.env\[1\].name: Field required"),
        ({"spec.scaling.mode": "Hold"}, "spec.scaling.mode: Input should be 'Auto', 'Recommend' or 'Manual'"),
        ({"spec.scaling.maxGPUs": -1}, "spec.scaling.maxGPUs: "),
        ({"spec.pools.decode.gpu.resourceName": "gpu"}, "spec.pools.decode.gpu.resourceName: .* pattern"),
        ({"spec.deflection.mode": False}, "spec.deflection.mode: .*write it in quotes"),
        ({"kind": "Deployment"}, "kind: Input should be 'DuetDeployment'"),
        ({"metadata": {}}, "metadata.name: Field required"),
    ],
)
def test_a_bad_object_is_refused_with_its_name_and_the_fields_path(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidObjectError, match=f"^DuetDeployment.*: {message}"):
        parse(patched(minimal(), patch))


def test_error_names_the_object() -> None:
    with pytest.raises(InvalidObjectError, match=r"^DuetDeployment default/example: spec\.slo"):
        parse(patched(minimal(), {"spec.slo.itlMilliseconds": None}))


def test_many_errors_are_counted_not_listed() -> None:
    arguments = patched(minimal(), {"spec.engine.args": list(range(9))})
    with pytest.raises(InvalidObjectError, match=r"args\[4\]: [^;]*; and 4 more$"):
        parse(arguments)


def condition(**fields: Any) -> Condition:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    return Condition(
        **{"type": "Ready", "status": "True", "reason": "Serving", "last_transition_time": moment} | fields
    )


def test_conditions_are_written_as_kubernetes_writes_them() -> None:
    assert condition(observed_generation=3).to_dict() == {
        "type": "Ready",
        "status": "True",
        "reason": "Serving",
        "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "observedGeneration": 3,
    }


def test_a_condition_is_found_by_its_type() -> None:
    status = DuetStatus(conditions=(condition(), condition(type="SLOMet", status="Unknown")))
    found = status.condition("SLOMet")
    assert found is not None and found.status == "Unknown"
    assert status.condition("Progressing") is None


@pytest.mark.parametrize("reason", ["", "two words", "9Lives"])
def test_a_reason_is_one_word(reason: str) -> None:
    with pytest.raises(ValidationError, match="reason"):
        condition(reason=reason)


def test_unknown_numbers_are_absent_not_zero() -> None:
    assert DuetStatus().to_dict() == {"conditions": [], "history": []}
