"""From a file's documents to a study: names become hardware, and a DuetDeployment's spec what it means for planning.

Invariant: what can't be resolved is refused with the field that says so.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from duet_engine.gateway.live_settings import LiveSettings, RoutingPolicy, live_settings
from duet_engine.policy.baselines import Baseline
from duet_engine.policy.deflect import DeflectionMode
from duet_engine.protocol import Role
from duet_engine.simulator.scenario import ColdStart
from duet_operator.planner.mode import initial_counts
from duet_operator.planner.spec import plan_spec
from duet_operator.planner.types import Counts, PlanSpec, PoolBounds
from duet_operator.prediction import read_calibrations
from duet_operator.simulation.documents import DeflectionDocument, InvalidFileError, ScalingDocument
from duet_operator.simulation.replicas import Hardware, Knowledge, Replica, replica
from duet_operator.simulation.study import Study

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from duet_engine.perf.efficiencies import Calibrated
    from duet_engine.simulator.workload_document import Workload
    from duet_operator.api.v1alpha1 import DuetDeployment, DuetSpec
    from duet_operator.simulation.documents import PoolDocument, SimulationDocument

GPU_ARGUMENT = "--gpu"
"""Simulated engines are told their GPU by it, in spec.engine.args."""
DEFAULT_ROUTING = "duet"
FIXED_PLANNER, DUET_PLANNER = "fixed", "duet"
_ROUTINGS = {
    RoutingPolicy.AUTO: DEFAULT_ROUTING,
    RoutingPolicy.GATE_AND_ROUTE: "gate-and-route",
    RoutingPolicy.LEAST_TTFT: str(Baseline.LEAST_TTFT),
    RoutingPolicy.ROUND_ROBIN: str(Baseline.ROUND_ROBIN),
}
"""What `spec.routing.policy` is called here."""


def study(
    deployment: DuetDeployment | None, document: SimulationDocument, *, name: str, base: Path, seed: int
) -> Study:
    """The study of a file whose folder is `base`.

    Raises:
        InvalidFileError: for what fields say only together: a GPU that nobody names, a model that doesn't fit.
    """
    if document.workload is None:
        raise InvalidFileError("workload: is required; add it to the file or give --trace")
    knowledge = knowledge_of(document, base)
    workload = document.workload.workload(base=base, seed=seed)
    if deployment is not None:
        return _of_deployment(deployment.spec, document, knowledge, name=name, workload=workload, seed=seed)
    return _of_scenario(document, knowledge, name=name, workload=workload, seed=seed)


def knowledge_of(document: SimulationDocument, base: Path) -> Knowledge:
    """What the document says of step times.

    Raises:
        InvalidFileError: for a calibration file that can't be read.
    """
    return Knowledge(_calibrations(document.calibration, base), document.sm_curve)


def _of_deployment(
    spec: DuetSpec, document: SimulationDocument, knowledge: Knowledge, *, name: str, workload: Workload, seed: int
) -> Study:
    gpu = document.gpu or _engine_argument(spec.engine.args, GPU_ARGUMENT)

    def workers(role: Role) -> Replica:
        own = gpu or spec.pool(role).gpu.type
        return _replica(Hardware(spec.model.id, _named(own), spec.tensor_parallel_size(role)), knowledge, str(role))

    planned = plan_spec(spec)
    settings = live_settings(spec.model_dump(by_alias=True, mode="json"), generation=0)
    mode = spec.scaling.mode
    counts = Counts(document.start.prefill, document.start.decode) if document.start else initial_counts(mode, planned)
    guess = ColdStart(seconds=spec.scaling.cold_start_seconds)
    return Study(
        name=name,
        document=document,
        workload=workload,
        spec=planned,
        prefill=workers(Role.PREFILL) if spec.pools.prefill.max_replicas else None,
        decode=workers(Role.DECODE),
        unified=False,
        start=counts,
        cold_start=ColdStart(**document.cold_start.model_dump()) if document.cold_start else guess,
        settings=settings,
        default_routing=document.routing or _ROUTINGS[settings.routing],
        default_planner=document.planner or (DUET_PLANNER if mode == "Auto" else FIXED_PLANNER),
        seed=seed,
    )


def _of_scenario(
    document: SimulationDocument, knowledge: Knowledge, *, name: str, workload: Workload, seed: int
) -> Study:
    pools, slo, model = document.pools, document.slo, document.model
    assert pools is not None and slo is not None and model is not None
    own = pools.decode or pools.unified
    assert own is not None

    def workers(pool: PoolDocument, where: str) -> Replica:
        ranks = pool.tensor_parallel_size or document.tensor_parallel_size or 1
        return _replica(Hardware(model, _named(pool.gpu or document.gpu), ranks), knowledge, where)

    decode = workers(own, "unified" if pools.unified else "decode")
    prefill = workers(pools.prefill, "prefill") if pools.prefill else None
    deflection = document.deflection or DeflectionDocument()
    spec = {"slo": slo, "deflection": deflection}
    settings = live_settings(
        {name: part.model_dump(by_alias=True, mode="json") for name, part in spec.items()}, generation=0
    )
    cold_start = ColdStart(**document.cold_start.model_dump()) if document.cold_start else ColdStart()
    return Study(
        name=name,
        document=document,
        workload=workload,
        spec=_plan_spec(document, settings, prefill, decode, cold_start),
        prefill=prefill,
        decode=decode,
        unified=pools.unified is not None,
        start=Counts(pools.prefill.replicas if pools.prefill else 0, own.replicas),
        cold_start=cold_start,
        settings=settings,
        default_routing=document.routing or DEFAULT_ROUTING,
        default_planner=document.planner or FIXED_PLANNER,
        seed=seed,
    )


def _plan_spec(
    document: SimulationDocument,
    settings: LiveSettings,
    prefill: Replica | None,
    decode: Replica,
    cold_start: ColdStart,
) -> PlanSpec:
    scaling = document.scaling or ScalingDocument()
    pools = document.pools
    assert pools is not None and document.slo is not None

    def bounds(pool: PoolDocument | None, workers: Replica | None) -> PoolBounds:
        if pool is None or workers is None:
            return PoolBounds(min_replicas=0, max_replicas=0)
        return PoolBounds(
            min_replicas=pool.min_replicas,
            max_replicas=pool.max_replicas,
            gpus_per_replica=workers.hardware.ranks,
        )

    return PlanSpec(
        objective=settings.objective,
        attainment_goal=document.slo.attainment_basis_points / 10_000,
        prefill=bounds(pools.prefill, prefill),
        decode=bounds(pools.decode or pools.unified, decode),
        deflection_enabled=settings.deflection.mode is not DeflectionMode.OFF,
        interval_seconds=scaling.interval_seconds,
        stabilization_seconds=scaling.stabilization_seconds,
        cold_start_guess_seconds=cold_start.seconds,
        max_gpus=scaling.max_gpus,
        spare_replicas=scaling.spare_replicas,
    )


def _replica(hardware: Hardware, knowledge: Knowledge, where: str) -> Replica:
    try:
        return replica(hardware, knowledge)
    except (ValueError, OSError) as error:
        raise InvalidFileError(f"{where} workers: {error}") from error


def _named(gpu: str | None) -> str:
    if gpu is None:
        raise InvalidFileError("gpu: say which GPU the workers have, such as `gpu: h100-sxm`, or give --gpu")
    return gpu


def _engine_argument(arguments: tuple[str, ...], name: str) -> str | None:
    """The value of an argument of the engine's command line."""
    for argument, following in zip_longest(arguments, arguments[1:]):
        if argument == name:
            return following
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
    return None


def _calibrations(path: str | None, base: Path) -> Mapping[str, Calibrated] | None:
    if path is None:
        return None
    try:
        with (base / path).open(encoding="utf-8") as file:
            return read_calibrations(file)
    except (OSError, ValueError) as error:
        raise InvalidFileError(f"calibration: {error}") from error
