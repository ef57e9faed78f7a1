"""What the conditions should say, from one pass's facts.

Invariant: each condition is decided by one function, and says in its message what a person on call would ask next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duet_engine.protocol import Role
from duet_operator.planner.reasons import CEILINGS, Reason
from duet_operator.resources.conditions import ConditionReason, Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duet_operator.api.v1alpha1 import ConditionType, DuetDeployment
    from duet_operator.planner.types import Counts, Decision, Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One pass, as far as its report needs it."""

    deployment: DuetDeployment
    observation: Observation
    decision: Decision
    targets: Counts
    """What scaling.mode made of the decision."""
    gateways_ready: int
    silent_gateways: Mapping[str, str] = field(default_factory=dict)
    """Gateway pod -> why it doesn't count as having answered."""
    late_gateways: Mapping[str, float] = field(default_factory=dict)
    """Gateway pod -> how late its event loop runs, in seconds, where that is more than it may be."""
    pending: Mapping[str, str] = field(default_factory=dict)
    """Pool -> why its pods are past the pending deadline."""
    successors: Mapping[str, int] = field(default_factory=dict)
    """Pool -> workers beyond its count, until those whose successors they are have left."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Pool -> which drain by hand waits, and what for."""
    rollout_stuck: str | None = None
    """Why a rollout doesn't get on, and what to do."""
    rollout_held: str | None = None
    """Why a new pod template isn't applied, and what to do."""
    gateway_rolling: bool = False
    """Gateway pods of an older template are left; that keeps no pool from shrinking."""
    rollout_told: str = ""
    """How far a rollout is."""
    newer_templates: bool = False
    """The present operator would make other pod templates than those that are kept."""
    refused: str | None = None
    """Why a child couldn't be brought about."""
    burn_rate_5m: float | None = None
    burn_rate_1h: float | None = None
    applied: bool = False
    """This pass changed a pod template, so a rollout begins."""
    first_look: bool = False
    """Every gateway answered, and nothing can be said of their traffic before they answer again."""
    attainment_unsettled: bool = False
    """No request has ended yet in a window that is still short."""


def rejected(problem: str) -> tuple[Finding, ...]:
    """An object that can't be acted on: what was made for it before goes on as it is."""
    return (
        Finding("Accepted", "False", ConditionReason.INVALID_SPEC, problem),
        Finding("Progressing", "False", ConditionReason.INVALID_SPEC, "nothing changes until the spec is mended"),
        Finding("Reconciling", "False", ConditionReason.INVALID_SPEC, "nothing changes until the spec is mended"),
        Finding("Stalled", "True", ConditionReason.INVALID_SPEC, problem),
    )


def findings(facts: Facts) -> tuple[Finding, ...]:
    """All conditions, but those that stay as they are because this pass can't tell."""
    progressing = _progressing(facts)
    told = (
        Finding("Accepted", "True", ConditionReason.VALID, "the spec is valid"),
        _ready(facts),
        progressing,
        _reconciling(progressing),
        _stalled(progressing),
        _scaling_active(facts),
        _scaling_limited(facts),
        _slo_met(facts),
        _signals_fresh(facts),
        _capacity_pending(facts),
        _gateway_saturated(facts),
    )
    kept = _kept(facts)
    return tuple(finding for finding in told if finding.type not in kept)


def _kept(facts: Facts) -> set[ConditionType]:
    """Conditions that go on saying what they did: an operator that has just begun has no news of them."""
    unknown: set[ConditionType] = set()
    if facts.first_look:
        unknown |= {"GatewaySaturated", "ScalingActive", "ScalingLimited", "SignalsFresh", "SLOMet"}
    if facts.attainment_unsettled:
        unknown.add("SLOMet")
    observation = facts.observation
    if observation.decode.ready and not observation.prefill.ready and not observation.complete:
        # Only gateways tell whether decode workers take prompts, and some are silent: SignalsFresh says so.
        unknown.add("Ready")
    return {kind for kind in unknown if facts.deployment.status.condition(kind) is not None}


def _ready(facts: Facts) -> Finding:
    observation = facts.observation
    prefill, decode = observation.prefill, observation.decode
    if facts.targets.decode == 0 and decode.replicas == 0:
        mode = facts.deployment.spec.scaling.mode
        if mode != "Auto":
            told = f"decode has 0 workers, and in scaling.mode {mode} no request wakes one"
            return Finding("Ready", "False", ConditionReason.NO_DECODE_WORKER, told)
        return Finding("Ready", "True", ConditionReason.IDLE, "scaled to zero; the next request wakes it")
    if facts.deployment.spec.gateway.enabled and facts.gateways_ready == 0:
        return Finding("Ready", "False", ConditionReason.NO_GATEWAY, "no gateway pod is ready")
    if decode.ready == 0:
        return Finding("Ready", "False", ConditionReason.NO_DECODE_WORKER, _starting("decode", decode.starting))
    if prefill.ready == 0 and not observation.deflection_active:
        return Finding("Ready", "False", ConditionReason.NO_PREFILL_WORKER, _starting("prefill", prefill.starting))
    return Finding(
        "Ready", "True", ConditionReason.SERVING, f"{prefill.ready} prefill and {decode.ready} decode workers serve"
    )


def _starting(role: str, starting: int) -> str:
    return f"no {role} worker is ready, {starting} are starting"


def _progressing(facts: Facts) -> Finding:
    if facts.refused is not None:
        return Finding("Progressing", "False", ConditionReason.CHILD_REFUSED, facts.refused)
    if facts.rollout_stuck is not None:
        return Finding("Progressing", "False", ConditionReason.ROLLOUT_STUCK, facts.rollout_stuck)
    if facts.rollout_held is not None:
        return Finding("Progressing", "False", ConditionReason.ROLLOUT_HELD, facts.rollout_held)
    if facts.observation.rollout_in_progress or facts.gateway_rolling or facts.applied:
        told = f"pods of an older template are replaced{facts.rollout_told}"
        return Finding("Progressing", "True", ConditionReason.ROLLING_OUT, told)
    busy = [told for role in ("prefill", "decode") if (told := _busy(facts, Role(role)))]
    if busy:
        return Finding("Progressing", "True", ConditionReason.SCALING, "; ".join(busy))
    settled = "both pools have the number of workers they should"
    if facts.newer_templates:
        settled += "; this operator makes newer pod templates, to which the annotation duetserve.io/upgrade moves them"
    return Finding("Progressing", "True", ConditionReason.SETTLED, settled)


def _busy(facts: Facts, role: Role) -> str:
    """What goes on in a pool, empty where nothing does."""
    pool, target = facts.observation.pool(role), facts.targets.of(role)
    moving = 0 if facts.deployment.spec.scaling.mode == "Recommend" else facts.successors.get(role.value, 0)
    going_on = [
        f"{count} {what}"
        for count, what in (
            (pool.starting, "starting"),
            (pool.draining, "draining"),
            (pool.replacing, "waiting for the GPU of a leaving one"),
            (moving, "more until those whose successors they are have left"),
        )
        if count
    ]
    if role.value in facts.held:
        going_on.append(facts.held[role.value])
    if pool.replicas == target:
        return ", ".join((f"{role.value} stays {target}", *going_on)) if going_on else ""
    return ", ".join((f"{role.value} {pool.replicas}→{target}", *going_on))


def _reconciling(progressing: Finding) -> Finding:
    """A new spec isn't everywhere yet: whoever waits for it must go on waiting."""
    if progressing.reason == ConditionReason.ROLLING_OUT:
        return Finding("Reconciling", "True", progressing.reason, progressing.message)
    return Finding("Reconciling", "False", ConditionReason.NO_ROLLOUT, "no rollout is under way")


def _stalled(progressing: Finding) -> Finding:
    """It can't get there by itself. A refusal of the API server may pass, so it's none."""
    if progressing.reason in (ConditionReason.ROLLOUT_STUCK, ConditionReason.ROLLOUT_HELD):
        return Finding("Stalled", "True", progressing.reason, progressing.message)
    return Finding("Stalled", "False", ConditionReason.NOT_STUCK, "nothing is stuck")


def _scaling_active(facts: Facts) -> Finding:
    mode, decision = facts.deployment.spec.scaling.mode, facts.decision
    if decision.held:
        return Finding("ScalingActive", "False", decision.reason, decision.message + _kept_successors(facts))
    if mode == "Recommend":
        message = "scaling.mode is Recommend: decisions are reported and change nothing" + _kept_successors(facts)
        return Finding("ScalingActive", "False", ConditionReason.RECOMMEND_MODE, message)
    if mode == "Manual":
        message = "scaling.mode is Manual: the numbers are the spec's, where absent the present ones"
        return Finding("ScalingActive", "False", ConditionReason.MANUAL_MODE, message)
    return Finding("ScalingActive", "True", ConditionReason.AUTO_MODE, "the numbers follow demand")


def _kept_successors(facts: Facts) -> str:
    """A move that was under way stands still in Recommend, with more workers than anybody asked for."""
    if facts.deployment.spec.scaling.mode != "Recommend" or not facts.successors:
        return ""
    kept = ", ".join(f"{pool} {count}" for pool, count in sorted(facts.successors.items()))
    return (
        f"; a move to successors stands still, with workers too many ({kept}):"
        " set scaling.mode to Auto or Manual to end it, or the count yourself"
    )


def _scaling_limited(facts: Facts) -> Finding:
    limits = [reason for reason in facts.decision.limited_by if reason in CEILINGS]
    if limits:
        return Finding("ScalingLimited", "True", limits[0], facts.decision.message)
    return Finding(
        "ScalingLimited", "False", ConditionReason.WITHIN_BOUNDS, "demand needs no more than the bounds allow"
    )


def _slo_met(facts: Facts) -> Finding:
    attainment = facts.observation.attainment
    if facts.observation.demand is None:
        return Finding("SLOMet", "Unknown", Reason.STALE_SIGNALS, "no gateway answered")
    if attainment is None or attainment.met_both_share is None:
        return Finding("SLOMet", "Unknown", ConditionReason.NO_TRAFFIC, "no request ended lately")
    goal = facts.deployment.spec.slo.attainment_basis_points / 10_000
    share = attainment.met_both_share
    message = (
        f"{100 * share:.1f} % of {attainment.completed_requests} requests met both objectives, goal {100 * goal:g} %"
    )
    if share >= goal:
        return Finding("SLOMet", "True", ConditionReason.OBJECTIVES_MET, message)
    return Finding("SLOMet", "False", ConditionReason.OBJECTIVES_MISSED, message)


def _signals_fresh(facts: Facts) -> Finding:
    if not facts.deployment.spec.gateway.enabled:
        message = "gateway.enabled is false, and demand is only measured at Duet's gateway yet: the numbers stay"
        return Finding("SignalsFresh", "False", ConditionReason.GATEWAY_DISABLED, message)
    silent = facts.silent_gateways
    if silent:
        told = "; ".join(f"{pod}: {why}" for pod, why in sorted(silent.items())[:3])
        message = f"{len(silent)} of {max(facts.gateways_ready, len(silent))} gateway pods didn't answer: {told}"
        return Finding("SignalsFresh", "False", ConditionReason.GATEWAY_SILENT, message)
    if facts.observation.demand is None:
        return Finding("SignalsFresh", "False", ConditionReason.GATEWAY_SILENT, "no gateway has told its demand yet")
    return Finding("SignalsFresh", "True", ConditionReason.ALL_ANSWERED, "every ready gateway answered")


def _capacity_pending(facts: Facts) -> Finding:
    if facts.pending:
        message = "; ".join(f"{pool}: {why}" for pool, why in sorted(facts.pending.items()))
        return Finding("CapacityPending", "True", ConditionReason.PODS_PENDING, message)
    return Finding("CapacityPending", "False", ConditionReason.NO_POD_PENDING, "no pod is past the pending deadline")


def _gateway_saturated(facts: Facts) -> Finding:
    """What users lose here no GPU wins back, so it is told apart from all misses that capacity would prevent."""
    late = facts.late_gateways
    if not late:
        return Finding("GatewaySaturated", "False", ConditionReason.KEEPS_UP, "every gateway that answers keeps up")
    told = "; ".join(f"{pod}: {1000 * seconds:.0f} ms" for pod, seconds in sorted(late.items())[:3])
    message = (
        f"{len(late)} of {facts.gateways_ready} gateway pods run late, at P99 by more than 20 ms ({told}): raise"
        f" gateway.replicas above {facts.deployment.spec.gateway.replicas}, or give each more CPU by gateway.template"
    )
    return Finding("GatewaySaturated", "True", ConditionReason.LOOP_LATE, message)
