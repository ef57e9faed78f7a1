"""One object's passes: children, counts, modes, refusals, silence; and no write where nothing is new."""

import json

import pytest
from tests.support.documents import document, served
from tests.support.kstatus import kstatus
from tests.support.operator_bench import KEY, Bench
from tests.support.virtual_pool import VirtualEngine

from duet_engine.drain import Drain
from duet_operator.cluster import CONFIG_MAP, DEPLOYMENT, DUET, POD, SERVICE, ClusterError, Kind
from duet_operator.controller import FOREIGN_SCALE
from duet_operator.ownership import HASH_ANNOTATION
from duet_operator.planner.types import DemandSample, PlannerMemory
from duet_operator.pods import DRAIN_ANNOTATION

CHILDREN = {
    ("ConfigMap", "served-duet-live"),
    ("ConfigMap", "served-duet-trust"),
    ("Deployment", "served-decode"),
    ("Deployment", "served-gateway"),
    ("Deployment", "served-prefill"),
    ("NetworkPolicy", "served-engines"),
    ("NetworkPolicy", "served-gateway"),
    ("PodDisruptionBudget", "served-decode"),
    ("PodDisruptionBudget", "served-gateway"),
    ("PodDisruptionBudget", "served-prefill"),
    ("RoleBinding", "served-gateway"),
    ("Service", "served"),
    ("ServiceAccount", "served-gateway"),
}


async def settled(bench: Bench) -> None:
    """All pods are ready and everything about it is told."""
    await bench.run_pass()
    bench.make_ready()
    await bench.run_pass(2)


async def test_the_first_pass_makes_all_children_with_their_owner() -> None:
    bench = Bench()
    await bench.run_pass()
    made = {(kind, name) for kind, _, name in bench.cluster.objects if kind not in ("DuetDeployment", "Event")}
    assert made == CHILDREN
    uid = bench.duet["metadata"]["uid"]
    for kind, name in CHILDREN:
        metadata = bench.cluster.objects[kind, KEY.namespace, name]["metadata"]
        assert [reference["uid"] for reference in metadata["ownerReferences"]] == [uid]
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "duet-operator"


async def test_a_pass_with_nothing_new_writes_nothing() -> None:
    bench = Bench()
    await settled(bench)
    assert await bench.run_pass(5) == []


async def test_another_operator_with_the_same_world_writes_nothing() -> None:
    bench = Bench()
    await settled(bench)
    bench.controller = bench.new_controller()
    assert await bench.run_pass(3) == []


async def test_counts_are_the_planner_s_and_no_apply_resets_them() -> None:
    bench = Bench()
    await settled(bench)
    bench.planner.decode = 4
    assert ("scale", "Deployment", "served-decode") in await bench.run_pass()
    assert bench.replicas("decode") == 4
    bench.change_spec(engine={"args": ["--new"]})
    writes = await bench.run_pass()
    assert ("apply", "Deployment", "served-decode") in writes
    assert bench.replicas("decode") == 4
    assert bench.deployment("decode")["spec"]["template"]["spec"]["containers"][0]["args"] == ["--new"]


async def test_what_the_spec_does_not_say_any_more_is_taken_away() -> None:
    bench = Bench({"gateway.service.annotations": {"dns": "name"}})
    await settled(bench)
    service = bench.cluster.objects[SERVICE.name, KEY.namespace, "served"]
    assert service["metadata"]["annotations"]["dns"] == "name"
    bench.change_spec(gateway={"service": {"annotations": None}})
    await bench.run_pass()
    service = bench.cluster.objects[SERVICE.name, KEY.namespace, "served"]
    assert set(service["metadata"]["annotations"]) == {HASH_ANNOTATION}


async def test_somebody_else_s_edit_of_our_field_is_repaired() -> None:
    bench = Bench()
    await settled(bench)
    bench.cluster.edit(SERVICE, KEY.namespace, "served", {"spec": {"type": "LoadBalancer"}})
    assert await bench.run_pass() == [("apply", "Service", "served")]
    assert bench.cluster.objects[SERVICE.name, KEY.namespace, "served"]["spec"]["type"] == "ClusterIP"


async def test_somebody_else_s_own_fields_are_left_alone() -> None:
    bench = Bench()
    await settled(bench)
    bench.cluster.edit(SERVICE, KEY.namespace, "served", {"metadata": {"annotations": {"theirs": "1"}}})
    assert await bench.run_pass() == []


async def test_a_deleted_child_comes_back_and_a_pool_with_its_first_count() -> None:
    bench = Bench()
    await settled(bench)
    bench.cluster.remove(SERVICE, KEY.namespace, "served")
    bench.cluster.remove(DEPLOYMENT, KEY.namespace, "served-decode")
    await bench.run_pass()
    assert ("Service", KEY.namespace, "served") in bench.cluster.objects
    assert bench.replicas("decode") == 1


async def test_a_deleted_pool_comes_back_with_the_count_that_was_decided() -> None:
    bench = Bench()
    await settled(bench)
    bench.planner.decode = 3
    bench.cluster.remove(DEPLOYMENT, KEY.namespace, "served-decode")
    await bench.run_pass()
    assert bench.replicas("decode") == 3


async def test_an_object_of_somebody_else_is_not_touched_and_the_rest_goes_on() -> None:
    bench = Bench()
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "served"},
        "spec": {},
    }
    bench.cluster.put(foreign)
    await bench.run_pass(2)
    assert bench.cluster.objects[SERVICE.name, KEY.namespace, "served"]["spec"] == {}
    status, reason, message = bench.condition("Progressing")
    assert (status, reason) == ("False", "ChildRefused")
    assert "Service served exists and doesn't belong to this object" in message
    assert bench.replicas("decode") == 1


async def test_a_pool_of_an_object_that_is_gone_is_not_scaled() -> None:
    bench = Bench()
    await settled(bench)
    bench.duet["metadata"]["uid"] = "of-a-new-object"
    bench.cluster.edit(DUET, KEY.namespace, KEY.name, {"metadata": {"annotations": {"new": "yes"}}})
    bench.planner.decode = 4
    assert ("scale", "Deployment", "served-decode") not in await bench.run_pass(2)
    assert bench.replicas("decode") == 1


async def test_a_refused_child_is_told_and_the_rest_goes_on() -> None:
    bench = Bench()

    def refuse(verb: str, kind: object) -> Exception | None:
        return ClusterError("create", status=403, reason="Forbidden", message="no right") if kind is SERVICE else None

    bench.cluster.refuse = refuse
    await bench.run_pass()
    assert "Forbidden: no right" in bench.condition("Progressing")[2]
    assert bench.replicas("decode") == 1
    bench.cluster.refuse = lambda _verb, _kind: None
    await bench.run_pass()
    assert bench.condition("Progressing")[0] == "True"


async def test_a_status_that_cannot_be_written_slows_no_pass_down() -> None:
    """Drains live by renewals in each pass, and a failed pass waits for longer and longer."""
    bench = Bench()
    await settled(bench)
    refusal = ClusterError("patch_status", status=403, reason="Forbidden", message="no right")
    bench.cluster.refuse = lambda verb, _kind: refusal if verb == "patch_status" else None
    bench.planner.decode = 3
    assert await bench.controller.run_pass() == 5
    assert bench.replicas("decode") == 3


async def test_disabling_the_gateway_removes_it_and_says_that_demand_is_unseen() -> None:
    bench = Bench({"pools.prefill.minReplicas": 1})
    await settled(bench)
    bench.change_spec(gateway={"enabled": False})
    await bench.run_pass()
    assert {name for kind, _, name in bench.cluster.objects if kind == "Deployment"} == {
        "served-prefill",
        "served-decode",
    }
    assert bench.condition("SignalsFresh")[:2] == ("False", "GatewayDisabled")


# --- modes ---


async def test_changes_of_mode_change_no_count() -> None:
    bench = Bench()
    await settled(bench)
    bench.planner.prefill, bench.planner.decode = 2, 3
    await bench.run_pass()
    bench.make_ready()
    for mode in ("Recommend", "Auto", "Manual", "Recommend", "Manual", "Auto"):
        bench.change_spec(scaling={"mode": mode})
        writes = await bench.run_pass(2)
        assert not [write for write in writes if write[0] == "scale"], mode
        assert (bench.replicas("prefill"), bench.replicas("decode")) == (2, 3)


@pytest.mark.parametrize("mode", ["Recommend", "Manual"])
async def test_what_another_mode_left_counts_as_needed_when_auto_takes_over(mode: str) -> None:
    bench = Bench({"scaling.mode": mode, "pools.decode.replicas": 3 if mode == "Manual" else None})
    await settled(bench)
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": 3}})
    await bench.run_pass(2)
    assert bench.planner.memory.needs == ()
    bench.change_spec(scaling={"mode": "Auto"})
    await bench.controller.save()
    bench.controller = bench.new_controller()  # which knows the mode before from the history alone
    await bench.run_pass()
    assert [(need.prefill, need.decode) for need in bench.planner.memory.needs] == [(1, 3)]
    bench.engines.now += 1
    await bench.run_pass()
    assert [need.time_seconds for need in bench.planner.memory.needs] == [bench.engines.now - 1]


async def test_recommend_tells_and_changes_nothing() -> None:
    bench = Bench({"scaling.mode": "Recommend"})
    await settled(bench)
    bench.planner.decode = 5
    bench.engines.now += bench.settings.status_refresh_seconds
    await bench.run_pass()
    assert bench.replicas("decode") == 1
    assert bench.duet["status"]["decode"]["recommended"] == 5
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": 3}})
    await bench.run_pass(2)
    assert bench.replicas("decode") == 3


async def test_manual_holds_what_the_spec_says() -> None:
    bench = Bench({"scaling.mode": "Manual", "pools.decode.replicas": 3})
    await settled(bench)
    assert bench.replicas("decode") == 3
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": 1}})
    await bench.run_pass()
    assert bench.replicas("decode") == 3
    assert ("ScaledUp", "decode 1→3 (ManualMode): the spec asks for 3") in bench.events()


async def test_a_count_that_somebody_else_changed_is_set_back_in_auto() -> None:
    bench = Bench()
    await settled(bench)
    bench.planner.decode = 3
    await bench.run_pass()
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": 1}})
    await bench.run_pass()
    assert bench.replicas("decode") == 3


async def test_a_count_that_somebody_else_changed_is_told_once_where_it_is_set_back() -> None:
    bench = Bench()
    await settled(bench)
    bench.planner.decode = 3
    await bench.run_pass(2)
    for _ in range(2):
        bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": 1}})
        await bench.run_pass()
        bench.engines.now += 5
        assert bench.replicas("decode") == 3
    (note,) = [note for reason, note in bench.events() if reason == FOREIGN_SCALE]
    assert note.startswith("decode 3→1 by somebody else; scaling.mode is Auto, so it becomes 3")


async def test_our_own_change_is_nobody_else_s_while_the_cache_does_not_know_of_it() -> None:
    """Neither the answer after it nor the watch came: the cache goes on showing the count from before."""
    bench = Bench()
    await settled(bench)
    bench.planner.decode = 3

    async def unreachable(*_: object) -> None:
        raise ClusterError("GET", status=0, reason="Timeout", message="")

    read, bench.cluster.get = bench.cluster.get, unreachable  # type: ignore[method-assign]
    bench.cluster.subscribers.clear()
    await bench.run_pass(2)
    assert (bench.replicas("decode"), bench.planner.seen[-1].decode.replicas) == (3, 1)
    bench.cluster.get = read  # type: ignore[method-assign]
    bench.world.put(bench.deployment("decode"))
    await bench.run_pass()
    assert FOREIGN_SCALE not in {reason for reason, _ in bench.events()}


async def test_our_own_change_whose_answer_was_lost_is_nobody_else_s() -> None:
    """It was made all the same, and the planner wants something else by now."""
    bench = Bench()
    await settled(bench)
    bench.planner.decode = 3
    scale = bench.cluster.patch_scale

    async def unanswered(kind: Kind, namespace: str, name: str, **options: int) -> str:
        await scale(kind, namespace, name, **options)
        raise ClusterError("scale", status=0, reason="Timeout", message="")

    bench.cluster.patch_scale = unanswered  # type: ignore[method-assign]
    await bench.run_pass()
    bench.cluster.patch_scale = scale  # type: ignore[method-assign]
    bench.planner.decode = 4
    await bench.run_pass(2)
    assert bench.replicas("decode") == 4
    assert FOREIGN_SCALE not in {reason for reason, _ in bench.events()}


@pytest.mark.parametrize("mode", ["Recommend", "Manual"])
async def test_a_count_that_is_left_to_somebody_else_is_no_warning(mode: str) -> None:
    bench = Bench({"scaling.mode": mode})
    await settled(bench)
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": 3}})
    await bench.run_pass(2)
    assert bench.replicas("decode") == 3
    assert FOREIGN_SCALE not in {reason for reason, _ in bench.events()}


# --- what finds no place ---


async def without_place() -> Bench:
    """Two workers more were asked for, found no place for a deadline, and were taken back."""
    bench = Bench({"scaling.pendingDeadlineSeconds": 60})
    await settled(bench)
    bench.planner.decode = 3
    await bench.run_pass()
    bench.cluster.control()
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    for pod in bench.pods("decode"):
        if not pod.ready:
            bench.cluster.set_status(POD, KEY.namespace, pod.name, phase="Pending", conditions=[unscheduled])
    await bench.run_pass()
    assert bench.planner.seen[-1].decode.room is None
    bench.engines.now += 61
    await bench.run_pass()
    assert bench.planner.seen[-1].decode.room == 1
    assert bench.condition("CapacityPending")[2].startswith("decode: 2 pods: Unschedulable")
    bench.planner.decode = 1
    bench.cluster.control()
    await bench.run_pass()
    bench.cluster.control()
    await bench.run_pass()
    assert (bench.replicas("decode"), len(bench.pods("decode"))) == (1, 1)
    return bench


async def test_pods_that_find_no_place_are_told_of_and_still_are_when_they_were_taken_back() -> None:
    bench = await without_place()
    status, _, message = bench.condition("CapacityPending")
    assert status == "True"
    assert "no place for more than 1 (Unschedulable: served-decode-" in message
    assert message.endswith("more are asked for again after 08:02 UTC")
    bench.engines.now += 61
    await bench.run_pass()
    assert bench.planner.seen[-1].decode.room is None
    assert bench.condition("CapacityPending")[0] == "False"


@pytest.mark.parametrize(
    ("mode", "said"), [("Recommend", "more are recommended again after 08:02 UTC"), ("Manual", "no pod is past")]
)
async def test_where_nothing_is_asked_for_nothing_is_said_to_be_asked_for_again(mode: str, said: str) -> None:
    bench = await without_place()
    bench.change_spec(scaling={"mode": mode})
    await bench.run_pass()
    assert said in bench.condition("CapacityPending")[2]


async def test_a_new_operator_knows_what_found_no_place_and_how_often() -> None:
    bench = await without_place()
    await bench.controller.save()
    known = bench.controller._memory.rooms
    bench.controller = bench.new_controller()
    await bench.run_pass()
    assert bench.planner.seen[-1].decode.room == 1
    assert bench.controller._memory.rooms == known != {}


# --- what can't be read, or isn't heard ---


async def test_a_spec_that_cannot_be_read_is_told_once_and_changes_nothing() -> None:
    bench = Bench()
    await settled(bench)
    bench.change_spec(slo={"ttftMilliseconds": -5})
    writes = await bench.run_pass(3)
    assert [write for write in writes if write[1] != "Event"] == [("patch_status", "DuetDeployment", "served")]
    status, reason, message = bench.condition("Accepted")
    assert (status, reason) == ("False", "InvalidSpec")
    assert "spec.slo.ttftMilliseconds" in message
    assert bench.replicas("decode") == 1


async def test_only_ready_gateways_are_asked_and_silence_is_told() -> None:
    bench = Bench({"gateway.replicas": 2})
    await bench.run_pass()
    assert bench.gateways.asked == []
    bench.make_ready()
    first, second = (pod.name for pod in bench.pods("gateway"))
    bench.gateways.documents = {first: document(served(0), sequence=1)}
    await bench.run_pass()
    bench.engines.now += 5
    bench.gateways.documents = {first: document(served(10), sequence=2)}
    await bench.run_pass()
    assert bench.gateways.asked == [first, second]
    seen = bench.planner.seen[-1]
    assert seen.demand is not None and seen.demand.requests_per_second == 2.0
    assert seen.complete is False
    status, reason, message = bench.condition("SignalsFresh")
    assert (status, reason) == ("False", "GatewaySilent")
    assert f"1 of 2 gateway pods didn't answer: {second}: no answer" in message


async def test_gateways_that_answer_share_the_window_of_work() -> None:
    bench = Bench({"gateway.replicas": 2})
    await settled(bench)
    names = [pod.name for pod in bench.pods("gateway")]
    bench.gateways.documents = {name: document(served(0), instance=name) for name in names}
    await bench.run_pass()
    assert {name: plan.dispatch_share for name, plan in bench.plans.by_pod.items()} == dict.fromkeys(names, 0.5)
    assert {plan.lease_seconds for plan in bench.plans.by_pod.values()} == {30.0}


async def test_a_creation_that_was_cut_short_is_taken_over() -> None:
    bench = Bench({"engine.args": ["--old"]})
    broken = ClusterError("patch", status=0, reason="Unreachable", message="")
    bench.cluster.refuse = lambda verb, _kind: broken if verb == "patch" else None
    await bench.run_pass()
    bench.cluster.refuse = lambda _verb, _kind: None
    bench.make_ready()
    bench.change_spec(engine={"args": None})
    await bench.run_pass()
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"replicas": 2}})
    await bench.run_pass()
    assert "args" not in bench.deployment("decode")["spec"]["template"]["spec"]["containers"][0]
    operations = {
        (entry["manager"], entry["operation"])
        for entry in bench.deployment("decode")["metadata"]["managedFields"]
        if not entry.get("subresource")
    }
    assert ("duet-operator", "Update") not in operations


async def test_an_object_that_is_being_deleted_is_left_alone() -> None:
    bench = Bench()
    await settled(bench)
    bench.cluster.edit(DUET, KEY.namespace, KEY.name, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    bench.planner.decode = 5
    assert await bench.run_pass() == []


# --- scaling down, told ---


async def test_a_lower_count_drains_first_and_is_told() -> None:
    bench = Bench()
    await settled(bench)
    bench.planner.decode = 2
    await bench.run_pass()
    bench.make_ready()
    for pod in bench.pods("decode"):
        bench.engines.by_uid[pod.uid] = VirtualEngine(Drain(worker=pod.name), started=True, requests=1)
    bench.planner.decode = 1
    await bench.run_pass()
    draining = [pod for pod in bench.pods("decode") if pod.draining_since_seconds is not None]
    assert len(draining) == 1
    assert bench.replicas("decode") == 2
    assert bench.planner.seen[-1].decode.draining == 0
    victim = draining[0]
    bench.engines.by_uid[victim.uid].requests = 0
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": bench.clock().isoformat()}]
    bench.cluster.set_status(POD, KEY.namespace, victim.name, conditions=conditions)
    for _ in range(2):
        bench.cluster.control()
        await bench.run_pass()
        bench.engines.now += 3
    assert bench.planner.seen[-1].decode.draining == 1
    assert bench.replicas("decode") == 1
    bench.cluster.control()
    assert victim.name not in {pod.name for pod in bench.pods("decode")}
    assert ("ScaledDown", "decode 2→1 (Sufficient): as the test wants it") in bench.events()
    action = bench.duet["status"]["history"][-1]
    assert (action["pool"], action["fromReplicas"], action["toReplicas"]) == ("decode", 2, 1)


# --- events ---


def warnings(bench: Bench) -> set[str]:
    events = [each for each in bench.cluster.objects.values() if each["kind"] == "Event"]
    return {each["reason"] for each in events if each["type"] == "Warning"}


async def test_a_start_warns_nobody_and_a_later_outage_does() -> None:
    bench = Bench({"gateway.replicas": 1})
    await bench.run_pass(3)
    assert warnings(bench) == set()
    await settled(bench)
    await answering(bench, 3)
    assert warnings(bench) == set()
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": bench.clock().isoformat()}]
    for pod in bench.pods("decode"):
        bench.cluster.set_status(POD, KEY.namespace, pod.name, conditions=conditions)
    await bench.run_pass()
    assert warnings(bench) == {"NoDecodeWorker"}


# --- a new operator ---


async def answering(bench: Bench, passes: int, *, moving: bool = True) -> None:
    """So many passes, 5 s apart, in which the gateway answers and ten requests end each time."""
    (gateway,) = bench.pods("gateway")
    for _ in range(passes):
        bench.answers += moving
        requests = 10 * bench.answers
        bench.gateways.documents = {gateway.name: document(served(requests), sequence=bench.answers)}
        bench.engines.now += 5
        await bench.run_pass()


async def test_the_first_passes_of_a_new_operator_take_nothing_back() -> None:
    bench = Bench({"gateway.replicas": 1})
    await settled(bench)
    await answering(bench, 6)
    assert bench.condition("SignalsFresh")[:2] == ("True", "AllAnswered")
    assert bench.condition("SLOMet")[:2] == ("True", "ObjectivesMet")
    told, events = bench.duet["status"], bench.events()
    bench.controller = bench.new_controller()
    await answering(bench, 1)
    assert bench.duet["status"] == told
    await answering(bench, 2)
    assert bench.condition("SignalsFresh")[:2] == ("True", "AllAnswered")
    assert bench.condition("SLOMet")[:2] == ("True", "ObjectivesMet")
    assert bench.events() == events


async def test_a_new_operator_says_so_when_the_answers_do_not_move() -> None:
    bench = Bench({"gateway.replicas": 1})
    await settled(bench)
    await answering(bench, 6)
    bench.controller = bench.new_controller()
    await answering(bench, 5, moving=False)
    assert bench.condition("SignalsFresh")[:2] == ("False", "GatewaySilent")


async def test_the_pass_that_sees_a_new_spec_says_that_it_is_rolled_out() -> None:
    """Whoever waits for it by kstatus must never see it as done before it is."""
    bench = Bench({"gateway.replicas": 1})
    await settled(bench)
    await answering(bench, 2)
    assert kstatus(bench.duet) == "Current"
    bench.change_spec(engine={"args": ["--log-level", "info"]})
    assert kstatus(bench.duet) == "InProgress"
    await bench.run_pass()
    assert bench.duet["status"]["observedGeneration"] == bench.duet["metadata"]["generation"]
    assert kstatus(bench.duet) == "InProgress"


async def test_a_roll_out_of_the_gateway_is_told_and_so_is_why_it_is_stuck() -> None:
    bench = Bench()
    await settled(bench)
    bench.change_spec(gateway={"template": {"metadata": {"annotations": {"example.com/new": "yes"}}}})
    await bench.run_pass()
    assert bench.condition("Progressing")[:2] == ("True", "RollingOut")
    exceeded = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too late"}
    bench.cluster.set_status(DEPLOYMENT, KEY.namespace, "served-gateway", conditions=[exceeded])
    await bench.run_pass()
    status, reason, message = bench.condition("Progressing")
    assert (status, reason) == ("False", "RolloutStuck")
    assert message.startswith("gateway: 0 of 2 pods have the new template, and too late")


async def test_decode_workers_begin_to_leave_when_prefill_workers_have_handed_over() -> None:
    bench = Bench()
    bench.planner.prefill = bench.planner.decode = 2
    await settled(bench)
    for pod in (*bench.pods("prefill"), *bench.pods("decode")):
        bench.engines.by_uid[pod.uid] = VirtualEngine(Drain(worker=pod.name), started=True, requests=1)
    bench.planner.prefill = bench.planner.decode = 1

    def draining(role: str) -> list[str]:
        return [pod.uid for pod in bench.pods(role) if pod.draining_since_seconds is not None]

    for _ in range(3):
        await bench.run_pass()
        bench.engines.now += 5
        assert (len(draining("prefill")), draining("decode")) == (1, [])
    bench.engines.by_uid[draining("prefill")[0]].requests = 0
    await bench.run_pass()
    assert len(draining("decode")) == 1


async def test_a_prefill_worker_that_never_answers_holds_up_no_decode_worker() -> None:
    bench = Bench()
    bench.planner.prefill, bench.planner.decode = 2, 2
    await settled(bench)
    for pod in bench.pods("decode"):
        bench.engines.by_uid[pod.uid] = VirtualEngine(Drain(worker=pod.name), started=True, requests=1)
    hung, _ = bench.pods("prefill")
    bench.engines.unreachable.add(hung.uid)
    bench.cluster.edit(POD, KEY.namespace, hung.name, {"metadata": {"annotations": {DRAIN_ANNOTATION: "true"}}})
    bench.planner.decode = 1
    await bench.run_pass()
    assert len([pod for pod in bench.pods("decode") if pod.draining_since_seconds is not None]) == 1


# --- memory ---


async def test_the_memory_outlives_the_operator() -> None:
    bench = Bench()
    await settled(bench)
    kept = PlannerMemory(samples=(DemandSample(5.0, 1.0, 2.0, 3.0),), correction=1.25)
    bench.controller._memory.planner = kept
    await bench.controller.save()
    data = bench.cluster.objects[CONFIG_MAP.name, KEY.namespace, "served-duet-history"]["data"]
    assert json.loads(data["memory.json"])["planner"]["correction"] == 1.25
    bench.controller = bench.new_controller()
    await bench.run_pass()
    assert bench.planner.memory == kept
    bench.cluster.writes.clear()
    await bench.controller.save()
    assert bench.cluster.writes == []


async def test_the_memory_of_another_object_of_this_name_is_left_alone() -> None:
    bench = Bench()
    await settled(bench)
    bench.controller._memory.planner = PlannerMemory(correction=1.25)
    await bench.controller.save()
    reference = {"controller": True, "uid": "another", "kind": "DuetDeployment", "name": KEY.name}
    theirs = {"metadata": {"ownerReferences": [reference]}}
    bench.cluster.edit(CONFIG_MAP, KEY.namespace, "served-duet-history", theirs)
    bench.controller = bench.new_controller()
    await bench.run_pass()
    assert bench.planner.memory == PlannerMemory()


async def test_a_child_on_its_way_out_is_not_changed_and_is_made_anew() -> None:
    bench = Bench()
    await settled(bench)
    leaving = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    bench.cluster.edit(SERVICE, KEY.namespace, "served", leaving)
    bench.change_spec(gateway={"service": {"annotations": {"new": "yes"}}})
    assert "Service" not in {kind for _, kind, _ in await bench.run_pass()}
    bench.cluster.remove(SERVICE, KEY.namespace, "served")
    assert ("create", "Service", "served") in await bench.run_pass()


async def test_a_pool_on_its_way_out_is_not_scaled() -> None:
    bench = Bench()
    await settled(bench)
    leaving = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", leaving)
    bench.planner.decode = 5
    assert ("scale", "Deployment", "served-decode") not in await bench.run_pass()


@pytest.mark.parametrize(
    "spoilt", ['{"planner": 7}', '{"rooms": {"decode": {"count": -1}}}', '{"rooms": 7}', '{"heldBy": 7}']
)
async def test_a_spoilt_memory_is_forgotten(spoilt: str) -> None:
    bench = Bench()
    await settled(bench)
    bench.controller._memory.planner = PlannerMemory(correction=1.25)
    await bench.controller.save()
    bench.cluster.edit(CONFIG_MAP, KEY.namespace, "served-duet-history", {"data": {"memory.json": spoilt}})
    bench.controller = bench.new_controller()
    await bench.run_pass()
    assert bench.planner.memory == PlannerMemory()
