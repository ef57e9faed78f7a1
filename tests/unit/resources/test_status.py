"""The status after a pass, and when it's written."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.kstatus import kstatus
from tests.support.manifests import deployment
from tests.support.planning import decide, demand, seen, serving, spec

from duet_operator.api.v1alpha1 import ConditionType, DuetDeployment, DuetStatus, ResolvedStatus, ScaleAction
from duet_operator.planner.types import Attainment, Counts, PoolState
from duet_operator.resources.conditions import conditions, transitions
from duet_operator.resources.findings import Facts, rejected
from duet_operator.resources.rendering import Defaults, render
from duet_operator.resources.status import resolved, status
from duet_operator.resources.status_writes import Worth, WriteBudget, merge_patch, worth_of

NOW = datetime(2026, 11, 21, 10, 0, 0, tzinfo=UTC)
MET = Attainment(
    window_seconds=30.0,
    completed_requests=500,
    met_both_share=0.991,
    ttft_p95_seconds=0.4,
    itl_p95_seconds=0.031,
    capacity_misses=2,
)


def facts(duet: DuetDeployment | None = None, **changes: Any) -> Facts:
    """A pass over three prefill and four decode workers that serve."""
    own = {
        key: changes.pop(key)
        for key in (
            "targets",
            "gateways_ready",
            "silent_gateways",
            "late_gateways",
            "pending",
            "rollout_stuck",
            "rollout_held",
            "refused",
            "burn_rate_5m",
            "applied",
            "first_look",
            "attainment_unsettled",
        )
        if key in changes
    }
    observation = seen(**{"prefill": 3, "decode": 4, "demand": demand(12.0), "attainment": MET} | changes)
    decision = decide(observation, spec=spec())
    values: dict[str, Any] = {
        "deployment": duet or deployment(),
        "observation": observation,
        "decision": decision,
        "targets": Counts(decision.prefill.replicas, decision.decode.replicas),
        "gateways_ready": 2,
    }
    return Facts(**values | own)


def condition(reported: DuetStatus, kind: Any) -> tuple[str, str]:
    found = reported.condition(kind)
    assert found is not None
    return found.status, found.reason


def test_numbers_of_a_pass() -> None:
    seen_now = facts(demand=demand(12.0, deflected_requests_per_second=3.0), burn_rate_5m=0.9)
    reported = status(seen_now, now=NOW).to_dict()
    assert reported["observedGeneration"] == 3
    assert reported["prefill"] == {
        "replicas": 3,
        "ready": 3,
        "starting": 0,
        "draining": 0,
        "replacing": 0,
        "desired": seen_now.targets.prefill,
        "recommended": seen_now.decision.prefill.recommended,
    }
    assert reported["slo"] == {
        "ttftP95Milliseconds": 400,
        "itlP95Milliseconds": 31,
        "attainmentBasisPoints": 9910,
        "burnRate5mMilli": 900,
    }
    assert reported["traffic"] == {
        "requestsPerSecondMilli": 12000,
        "inputTokensPerSecond": 12000,
        "outputTokensPerSecond": 2400,
        "deflectedBasisPoints": 2500,
    }
    assert reported["summary"] == {
        "prefill": f"3/{seen_now.targets.prefill}",
        "decode": f"4/{seen_now.targets.decode}",
        "attainment": "99.1%",
        "deflected": "25%",
    }
    assert reported["decision"]["time"] == "2026-11-21T10:00:00Z"
    assert reported["decision"]["message"] == seen_now.decision.message
    assert reported["decision"]["inputs"]["requestsPerSecondMilli"] == 12000


def test_unknown_numbers_are_absent_and_not_zero() -> None:
    reported = status(facts(demand=None, attainment=None, complete=False), now=NOW).to_dict()
    assert "traffic" not in reported
    assert reported["slo"] == {}
    assert "attainment" not in reported["summary"]


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        pytest.param({}, "Accepted", ("True", "Valid"), id="valid"),
        pytest.param({}, "Ready", ("True", "Serving"), id="serving"),
        pytest.param({"gateways_ready": 0}, "Ready", ("False", "NoGateway"), id="no gateway"),
        pytest.param(
            {"decode": PoolState(replicas=2, starting=2)}, "Ready", ("False", "NoDecodeWorker"), id="no decode worker"
        ),
        pytest.param({"prefill": 0}, "Ready", ("True", "Serving"), id="decode workers take the prompts"),
        pytest.param(
            {"prefill": 0, "deflection_active": False}, "Ready", ("False", "NoPrefillWorker"), id="no place for prompts"
        ),
        pytest.param(
            {"prefill": 0, "decode": 0, "targets": Counts(0, 0)}, "Ready", ("True", "Idle"), id="scaled to zero"
        ),
        pytest.param(
            {
                "duet": deployment({"spec.scaling.mode": "Recommend"}),
                "prefill": 0,
                "decode": 0,
                "targets": Counts(0, 0),
            },
            "Ready",
            ("False", "NoDecodeWorker"),
            id="nobody wakes it",
        ),
        pytest.param({"targets": Counts(3, 4)}, "Progressing", ("True", "Settled"), id="settled"),
        pytest.param({"targets": Counts(3, 5)}, "Progressing", ("True", "Scaling"), id="scaling"),
        pytest.param({"rollout_in_progress": True}, "Progressing", ("True", "RollingOut"), id="rollout"),
        pytest.param({"refused": "quota"}, "Progressing", ("False", "ChildRefused"), id="child refused"),
        pytest.param({"rollout_stuck": "pod x"}, "Progressing", ("False", "RolloutStuck"), id="stuck rollout"),
        pytest.param({"rollout_held": "no GPU"}, "Progressing", ("False", "RolloutHeld"), id="held rollout"),
        pytest.param({"rollout_held": "no GPU"}, "Stalled", ("True", "RolloutHeld"), id="stalled by the budget"),
        pytest.param({"targets": Counts(3, 5)}, "Reconciling", ("False", "NoRollout"), id="scaling is no rollout"),
        pytest.param({"rollout_in_progress": True}, "Reconciling", ("True", "RollingOut"), id="reconciling"),
        pytest.param({"applied": True}, "Reconciling", ("True", "RollingOut"), id="a rollout that begins"),
        pytest.param({"refused": "quota"}, "Stalled", ("False", "NotStuck"), id="a refusal may pass"),
        pytest.param({"rollout_stuck": "pod x"}, "Stalled", ("True", "RolloutStuck"), id="stalled"),
        pytest.param({}, "ScalingActive", ("True", "AutoMode"), id="auto"),
        pytest.param(
            {"duet": deployment({"spec.scaling.mode": "Recommend"})},
            "ScalingActive",
            ("False", "RecommendMode"),
            id="recommend",
        ),
        pytest.param(
            {"duet": deployment({"spec.scaling.mode": "Manual"})}, "ScalingActive", ("False", "ManualMode"), id="manual"
        ),
        pytest.param({"demand": None}, "ScalingActive", ("False", "StaleSignals"), id="held"),
        pytest.param({}, "ScalingLimited", ("False", "WithinBounds"), id="within bounds"),
        pytest.param({"demand": demand(500.0)}, "ScalingLimited", ("True", "MaxReplicas"), id="limited"),
        pytest.param({}, "SLOMet", ("True", "ObjectivesMet"), id="met"),
        pytest.param(
            {"attainment": replace(MET, met_both_share=0.95)}, "SLOMet", ("False", "ObjectivesMissed"), id="missed"
        ),
        pytest.param({"attainment": None}, "SLOMet", ("Unknown", "NoTraffic"), id="no traffic"),
        pytest.param({"demand": None}, "SLOMet", ("Unknown", "StaleSignals"), id="unknown"),
        pytest.param({}, "SignalsFresh", ("True", "AllAnswered"), id="fresh"),
        pytest.param(
            {"silent_gateways": {"pod-1": "timed out"}}, "SignalsFresh", ("False", "GatewaySilent"), id="silent"
        ),
        pytest.param({"demand": None}, "SignalsFresh", ("False", "GatewaySilent"), id="nothing told"),
        pytest.param(
            {"duet": deployment({"spec.gateway.enabled": False, "spec.pools.prefill.minReplicas": 1})},
            "SignalsFresh",
            ("False", "GatewayDisabled"),
            id="no gateway to ask",
        ),
        pytest.param({}, "CapacityPending", ("False", "NoPodPending"), id="none pending"),
        pytest.param(
            {"pending": {"decode": "2 pods: Unschedulable"}}, "CapacityPending", ("True", "PodsPending"), id="pending"
        ),
        pytest.param({}, "GatewaySaturated", ("False", "KeepsUp"), id="gateways keep up"),
        pytest.param({"late_gateways": {"pod-1": 0.034}}, "GatewaySaturated", ("True", "LoopLate"), id="gateway late"),
    ],
)
def test_condition(changes: dict[str, Any], kind: Any, expected: tuple[str, str]) -> None:
    assert condition(status(facts(**changes), now=NOW), kind) == expected


def test_all_documented_conditions_are_reported() -> None:
    assert [each.type for each in status(facts(), now=NOW).conditions] == sorted(get_args(ConditionType))


def test_silent_gateways_are_named() -> None:
    reported = status(facts(silent_gateways={"pod-1": "timed out"}), now=NOW).condition("SignalsFresh")
    assert reported is not None
    assert reported.message == "1 of 2 gateway pods didn't answer: pod-1: timed out"


def with_status(reported: DuetStatus) -> DuetDeployment:
    return deployment().model_copy(update={"status": reported})


def test_transition_time_moves_only_with_the_status() -> None:
    first = status(facts(), now=NOW)
    later = NOW + timedelta(minutes=5)
    missed = facts(with_status(first), attainment=replace(MET, met_both_share=0.5))
    second = status(missed, now=later)
    times = {each.type: each.last_transition_time for each in second.conditions}
    assert times.pop("SLOMet") == later
    assert set(times.values()) == {NOW}
    assert [each.type for each in transitions(first.conditions, second.conditions)] == ["SLOMet"]


@pytest.mark.parametrize(
    ("changes", "generation", "expected"),
    [
        pytest.param({}, 3, "Current", id="serving"),
        pytest.param({}, 4, "InProgress", id="a spec that no pass has seen"),
        pytest.param({"gateways_ready": 0}, 3, "InProgress", id="not ready yet"),
        pytest.param({"targets": Counts(3, 5)}, 3, "Current", id="scaling"),
        pytest.param({"rollout_in_progress": True}, 3, "InProgress", id="rollout"),
        pytest.param({"applied": True}, 3, "InProgress", id="the pass that begins a rollout"),
        pytest.param({"rollout_stuck": "pod x"}, 3, "Failed", id="stuck rollout"),
        pytest.param({"refused": "quota"}, 3, "Current", id="refused child"),
        pytest.param({"prefill": 0, "decode": 0, "targets": Counts(0, 0)}, 3, "Current", id="scaled to zero"),
    ],
)
def test_kstatus_reads_it_as_meant(changes: dict[str, Any], generation: int, expected: str) -> None:
    manifest = {"metadata": {"generation": generation}, "status": status(facts(**changes), now=NOW).to_dict()}
    assert kstatus(manifest) == expected


def test_kstatus_reads_a_rejected_spec_as_failed() -> None:
    told = conditions(rejected("spec.x is bad"), before=status(facts(), now=NOW).conditions, generation=4, now=NOW)
    after = DuetStatus(observed_generation=4, conditions=told)
    assert kstatus({"metadata": {"generation": 4}, "status": after.to_dict()}) == "Failed"


def test_ready_stays_while_nobody_tells_whether_decode_workers_take_prompts() -> None:
    before = status(facts(prefill=0), now=NOW - timedelta(hours=1))
    silent = {"prefill": 0, "deflection_active": False, "complete": False, "demand": None}
    after = status(facts(with_status(before), silent_gateways={"pod-1": "timed out"}, **silent), now=NOW)
    assert condition(after, "Ready") == ("True", "Serving")
    assert condition(after, "SignalsFresh") == ("False", "GatewaySilent")
    assert condition(status(facts(with_status(before), **silent, decode=0), now=NOW), "Ready")[0] == "False"


# --- an operator that has just begun ---


def just_begun(before: DuetStatus, **changes: Any) -> DuetStatus:
    """What an operator reports that has one answer of each gateway."""
    return status(facts(with_status(before), demand=None, attainment=None, first_look=True, **changes), now=NOW)


def test_a_first_look_leaves_what_it_cannot_tell() -> None:
    before = status(facts(targets=Counts(3, 4)), now=NOW - timedelta(hours=1))
    assert just_begun(before, targets=Counts(3, 4)) == before


def test_a_first_look_tells_the_states_that_it_sees() -> None:
    before = status(facts(targets=Counts(3, 4)), now=NOW - timedelta(hours=1))
    after = just_begun(before, gateways_ready=0, decode=serving(4, starting=1))
    assert condition(after, "Ready") == ("False", "NoGateway")
    assert after.decode is not None and after.decode.starting == 1


def test_a_first_look_at_an_object_without_a_status_says_what_is_unknown() -> None:
    after = just_begun(DuetStatus())
    assert condition(after, "SignalsFresh") == ("False", "GatewaySilent")
    assert condition(after, "SLOMet") == ("Unknown", "StaleSignals")


def test_objectives_stay_met_while_the_window_is_short_and_empty() -> None:
    before = status(facts(), now=NOW)
    unsettled = facts(with_status(before), attainment=None, attainment_unsettled=True)
    assert condition(status(unsettled, now=NOW), "SLOMet") == ("True", "ObjectivesMet")
    assert condition(status(replace(unsettled, attainment_unsettled=False), now=NOW), "SLOMet")[1] == "NoTraffic"


def test_history_keeps_the_last_twenty() -> None:
    duet = deployment()
    for number in range(25):
        action = ScaleAction(time=NOW, pool="decode", from_replicas=number, to_replicas=number + 1, reason="LoadRising")
        duet = with_status(status(facts(duet), actions=[action], now=NOW))
    assert [action.to_replicas for action in duet.status.history] == list(range(6, 26))


def test_rejected_object_says_why_and_keeps_the_rest() -> None:
    before = status(facts(), now=NOW)
    told = conditions(rejected("spec.engine.template is bad"), before=before.conditions, generation=4, now=NOW)
    after = DuetStatus(conditions=told)
    accepted = after.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.message) == ("False", "spec.engine.template is bad")
    assert condition(after, "Ready") == condition(before, "Ready")


def derived(duet: DuetDeployment, *, engine: str, version: str, **settings: Any) -> ResolvedStatus:
    """What a version of the operator with this engine image pins, of an object that has no Deployment yet."""
    defaults = Defaults(operator_version=version, engine_image=engine, gateway_image="gateway", **settings)
    return resolved(render(duet, {}, defaults), duet)


def test_derived_images_are_pinned_once() -> None:
    pinned = derived(deployment(), engine="a", version="1")
    assert (pinned.engine_image, pinned.gateway_image, pinned.operator_version) == ("a", "gateway", "1")
    assert derived(with_status(DuetStatus(resolved=pinned)), engine="c", version="2") == pinned


def test_how_images_are_pulled_is_pinned_with_them() -> None:
    """Else a new setting of the operator would be mixed with what was derived earlier."""
    pinned = derived(deployment(), engine="a", version="1", pull_policy="Never")
    again = derived(
        with_status(DuetStatus(resolved=pinned)), engine="c", version="2", pull_secrets=("new",), pull_policy="Always"
    )
    assert again == pinned
    by_an_older_version = with_status(DuetStatus(resolved=ResolvedStatus(operator_version="0", gateway_image="b")))
    taken = derived(by_an_older_version, engine="a", version="1", pull_secrets=("new",))
    assert (taken.image_pull_secrets, taken.gateway_image, taken.operator_version) == (("new",), "b", "0")


def test_image_of_the_spec_is_not_pinned() -> None:
    pinned = derived(deployment({"spec.engine.image": "own"}), engine="a", version="1")
    assert pinned.engine_image is None
    assert derived(with_status(DuetStatus(resolved=pinned)), engine="a", version="2").engine_image == "a"


# --- writes ---


def reported(now: datetime = NOW, **changes: Any) -> DuetStatus:
    values: dict[str, Any] = {"targets": Counts(3, 4)} | changes
    return status(facts(**values), now=now)


def test_nothing_new_is_never_written() -> None:
    later, first = NOW + timedelta(hours=1), reported()
    assert worth_of(first, reported(later, duet=with_status(first)), now=later) is Worth.NOTHING


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"targets": Counts(3, 5)}, id="desired count"),
        pytest.param({"decode": serving(4, starting=1)}, id="starting worker"),
        pytest.param({"silent_gateways": {"a": "b"}}, id="condition"),
        pytest.param({"duet": deployment(generation=4)}, id="generation"),
        pytest.param({"demand": demand(500.0)}, id="reason of the decision"),
    ],
)
def test_states_are_written_at_once(changes: dict[str, Any]) -> None:
    now = NOW + timedelta(seconds=1)
    assert worth_of(reported(), reported(now, **changes), now=now) is Worth.AT_ONCE


@pytest.mark.parametrize(
    ("attainment", "seconds", "worth"),
    [
        pytest.param(replace(MET, ttft_p95_seconds=0.41), 30, Worth.NOTHING, id="a little, early"),
        pytest.param(replace(MET, ttft_p95_seconds=0.41), 60, Worth.DUE, id="a little, after a minute"),
        pytest.param(replace(MET, ttft_p95_seconds=0.6), 30, Worth.CHANGED, id="more than a tenth"),
        pytest.param(replace(MET, ttft_p95_seconds=0.6), 5, Worth.NOTHING, id="more than a tenth, in the next pass"),
        pytest.param(replace(MET, ttft_p95_seconds=None), 30, Worth.CHANGED, id="a number vanishes"),
    ],
)
def test_measured_numbers_are_written_seldom(attainment: Attainment, seconds: float, worth: Worth) -> None:
    now = NOW + timedelta(seconds=seconds)
    assert worth_of(reported(), reported(now, attainment=attainment), now=now) is worth


def test_first_status_is_written() -> None:
    assert worth_of(DuetStatus(), reported(), now=NOW) is Worth.AT_ONCE


WRITES_PER_SECOND = 15.0


def written(budget: WriteBudget, worth: Worth, *, objects: int, seconds: int) -> list[int]:
    """How many of so many objects, each with a pass a second, are written in each second."""
    return [
        sum(budget.allows(worth, now_seconds=second + number / objects) for number in range(objects))
        for second in range(seconds)
    ]


@pytest.mark.parametrize("worth", [Worth.CHANGED, Worth.DUE])
def test_measured_numbers_of_a_thousand_objects_stay_within_the_budget(worth: Worth) -> None:
    each_second = written(WriteBudget(WRITES_PER_SECOND), worth, objects=1000, seconds=60)
    assert sum(each_second) <= 61 * WRITES_PER_SECOND
    assert max(each_second[1:]) <= WRITES_PER_SECOND + 1
    assert min(each_second[1:]) >= WRITES_PER_SECOND - 1


def test_states_are_never_held_back_and_numbers_pay_for_them() -> None:
    budget = WriteBudget(WRITES_PER_SECOND)
    assert written(budget, Worth.AT_ONCE, objects=100, seconds=1) == [100]
    assert not budget.allows(Worth.DUE, now_seconds=1.5)
    assert budget.allows(Worth.DUE, now_seconds=4.0)


def test_numbers_that_changed_leave_room_for_those_that_are_due() -> None:
    budget = WriteBudget(WRITES_PER_SECOND)
    changed = written(budget, Worth.CHANGED, objects=100, seconds=1)[0]
    assert 0 < changed < 100
    assert budget.allows(Worth.DUE, now_seconds=1.0)


def test_nothing_is_never_written() -> None:
    assert not WriteBudget(WRITES_PER_SECOND).allows(Worth.NOTHING, now_seconds=0.0)


JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


def applied(old: Any, patch: Any) -> Any:
    """RFC 7386, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = applied(result.get(key), value)
    return result


@given(OBJECTS, OBJECTS)
def test_patch_makes_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = merge_patch(old, new)
    assert applied(old, patch) == new
    assert bool(patch) == (old != new)
