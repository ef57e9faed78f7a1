"""Simulations as people write them: a DuetDeployment with a workload beside it, or a plain scenario.

Invariant: every field is checked before anything runs, and a mistake is named by its path with what it may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from duet_engine.perf.sm_curves import CurveName
from duet_engine.policy.deflect import DeflectionMode
from duet_engine.simulator.scenario import LocalPrefill
from duet_engine.simulator.workload_document import Document, Positive, WorkloadDocument, problems
from duet_operator.api.v1alpha1 import KIND, DuetDeployment, InvalidObjectError, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Replicas = Annotated[int, Field(ge=0, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class InvalidFileError(ValueError):
    """A file that can't be simulated; each line of the message names a field and what is wrong with it."""


class ClassDocument(Document):
    """What requests of one class of the workload are promised instead; what isn't said is as for all."""

    name: str
    ttft_milliseconds: Positive | None = None
    itl_milliseconds: Positive | None = None


class SloDocument(Document):
    """What each request is promised."""

    ttft_milliseconds: Positive
    ttft_unloaded_percent: Annotated[float, Field(ge=100)] | None = None
    itl_milliseconds: Positive
    attainment_basis_points: Annotated[int, Field(ge=5000, le=9999)] = 9900
    classes: tuple[ClassDocument, ...] = ()


class DeflectionDocument(Document):
    """Prefill on decode workers, as in the API."""

    mode: DeflectionMode = DeflectionMode.AUTO
    alpha_percent: Annotated[float, Field(ge=100)] = 130
    beta_percent: Annotated[float, Field(ge=1, le=100)] = 85


class PoolDocument(Document):
    """Equal workers."""

    replicas: Replicas = 1
    """At the start; a planner changes it within the bounds."""
    min_replicas: Replicas = 0
    max_replicas: Replicas = 4096
    gpu: str | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError("replicas must lie between minReplicas and maxReplicas")
        return self


class PoolsDocument(Document):
    """Separate prefill and decode workers, or unified ones that do both."""

    prefill: PoolDocument | None = None
    decode: PoolDocument | None = None
    unified: PoolDocument | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.decode is None) == (self.unified is None) or (self.unified is not None and self.prefill is not None):
            raise ValueError("give decode (with prefill, or without it to prefill there), or unified")
        return self


class ScalingDocument(Document):
    """The control loop, where a planner moves the pools."""

    interval_seconds: Positive = 5.0
    stabilization_seconds: NotNegative = 180.0
    max_gpus: int | None = Field(default=None, ge=1, alias="maxGPUs")
    spare_replicas: Replicas = 0


class ColdStartDocument(Document):
    """From scheduled to ready."""

    seconds: NotNegative = 120.0
    spread_seconds: NotNegative = 15.0


class NoiseDocument(Document):
    """How far steps are off the model."""

    relative_spread: Share = 0.05
    stall_probability: Share = 1e-4
    stall_seconds: NotNegative = 0.1


class DeathDocument(Document):
    """A worker that disappears."""

    minute: NotNegative
    pool: Annotated[str, Field(pattern="^(prefill|decode|unified)$")]
    index: Replicas = 0


class StartDocument(Document):
    """Workers that are ready when the workload begins."""

    prefill: Replicas
    decode: Replicas


class SimulationDocument(Document):
    """What is simulated. Beside a DuetDeployment, model, slo, pools, scaling and deflection come from its spec."""

    model: str | None = None
    """A known id, or the path of a config.json."""
    slo: SloDocument | None = None
    pools: PoolsDocument | None = None
    scaling: ScalingDocument | None = None
    deflection: DeflectionDocument | None = None
    gpu: str | None = None
    """Of pools that don't name their own: h100-sxm, a100-3g.40gb, ..."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = None
    start: StartDocument | None = None
    """Beside a DuetDeployment, whose pools otherwise begin at their least."""
    workload: WorkloadDocument | None = None
    routing: str | None = None
    planner: str | None = None
    local_prefill: LocalPrefill = LocalPrefill.SAFE
    """How workers that decode compute prompts."""
    calibration: str | None = None
    """A file that `duet calibrate` wrote."""
    sm_curve: CurveName = CurveName.DATA_SHEET
    model_error_percent: Annotated[float, Field(gt=-90, le=1000)] = 0.0
    """By how much steps take longer than policies and planners believe."""
    cold_start: ColdStartDocument | None = None
    noise: NoiseDocument = NoiseDocument()
    workers_per_link: Annotated[int, Field(ge=1)] = 1
    prefix_cache: bool = True
    metrics_age_seconds: NotNegative = 0.0
    """How old what a planner sees is."""
    deaths: tuple[DeathDocument, ...] = ()
    warm_up_minutes: NotNegative | None = None
    """Requests of the first minutes aren't judged; by default 5 of a run that a planner moves, and none else."""
    seed: Annotated[int, Field(ge=0)] = 0


def read_documents(documents: Iterable[Any], *, source: str) -> tuple[DuetDeployment | None, SimulationDocument]:
    """The parts of a file: at most one DuetDeployment, and at most one document of the simulation.

    Raises:
        InvalidFileError: naming every field that is wrong.
    """
    deployment: DuetDeployment | None = None
    simulation: SimulationDocument | None = None
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise InvalidFileError(f"{source}: a document is {type(document).__name__}, not fields and values")
        if "kind" in document or "apiVersion" in document:
            if document.get("kind") != KIND or deployment is not None:
                raise InvalidFileError(f"{source}: expected one {KIND} at most, found {document.get('kind')!r} too")
            deployment = _deployment(document, source)
        elif simulation is not None:
            raise InvalidFileError(f"{source}: has two documents that describe a simulation; make them one")
        else:
            simulation = _simulation(document, source)
    if deployment is None and simulation is None:
        raise InvalidFileError(f"{source}: is empty; see examples/simulate.yaml")
    simulation = simulation or SimulationDocument()
    _check_together(deployment, simulation, source)
    return deployment, simulation


def _deployment(document: Mapping[str, Any], source: str) -> DuetDeployment:
    try:
        return parse(document)
    except InvalidObjectError as error:
        raise InvalidFileError(f"{source}: {error}") from error


def _simulation(document: Mapping[str, Any], source: str) -> SimulationDocument:
    try:
        return SimulationDocument.model_validate(document)
    except ValidationError as error:
        raise InvalidFileError("\n".join(f"{source}: {problem}" for problem in problems(error))) from error


def _check_together(deployment: DuetDeployment | None, simulation: SimulationDocument, source: str) -> None:
    """What only one of both may say, and what must be said by one."""
    of_spec = ("model", "slo", "pools", "scaling", "deflection", "tensor_parallel_size")
    given = [name for name in of_spec if getattr(simulation, name) is not None]
    if deployment is not None and given:
        raise InvalidFileError(f"{source}: {', '.join(given)}: comes from the {KIND}'s spec; remove it here")
    if deployment is None:
        missing = [name for name in ("model", "slo", "pools") if name not in given]
        if missing:
            raise InvalidFileError(f"{source}: {', '.join(missing)}: is required without a {KIND} in the file")
        if simulation.start is not None:
            raise InvalidFileError(f"{source}: start: is for a {KIND}; give pools.*.replicas")
