"""How pools begin and roll: decode first; the only worker stays until its successor serves, within the budget."""

from typing import Any

from tests.support.operator_bench import KEY, Bench

from duet_operator.cluster import DEPLOYMENT, POD
from duet_operator.resources.labels import TEMPLATE as TEMPLATE_LABEL

POOLS = ("prefill", "decode")
CHANGED = {"metadata": {"annotations": {"example.com/changed": "yes"}}}


async def serving(spec: dict[str, Any] | None = None, *, prefill: int = 1, decode: int = 1) -> Bench:
    """So many workers of each pool, all ready."""
    bench = Bench(spec)
    bench.planner.prefill, bench.planner.decode = prefill, decode
    for _ in range(3):
        await bench.run_pass()
        bench.make_ready()
    await bench.run_pass()
    return bench


def way(bench: Bench, role: str) -> tuple[int, int]:
    """maxSurge and maxUnavailable."""
    update = bench.deployment(role)["spec"]["strategy"]["rollingUpdate"]
    return update["maxSurge"], update["maxUnavailable"]


def args(bench: Bench, role: str) -> list[str]:
    return list(bench.deployment(role)["spec"]["template"]["spec"]["containers"][0].get("args", []))


def paused(bench: Bench) -> tuple[bool, bool]:
    first, second = (bool(bench.deployment(role)["spec"].get("paused")) for role in POOLS)
    return first, second


def replace_one(bench: Bench, role: str) -> str:
    """What the Deployment's controller does in one step of a rollout; the new pod's name."""
    before = {pod["metadata"]["name"] for pod in bench.cluster.pods(role)}
    template = bench.deployment(role)["spec"]["template"]["metadata"]["labels"][TEMPLATE_LABEL]
    old = [pod for pod in bench.cluster.pods(role) if pod["metadata"]["labels"][TEMPLATE_LABEL] != template]
    bench.cluster.remove(POD, KEY.namespace, old[0]["metadata"]["name"])
    bench.cluster.control()
    (new,) = {pod["metadata"]["name"] for pod in bench.cluster.pods(role)} - before
    return str(new)


def set_conditions(bench: Bench, name: str, **status: Any) -> None:
    bench.cluster.set_status(POD, KEY.namespace, name, **status)


async def test_the_only_worker_of_a_pool_is_replaced_after_its_successor_serves() -> None:
    bench = await serving()
    assert (way(bench, "prefill"), way(bench, "decode")) == ((1, 0), (1, 0))
    bench.planner.decode = 3
    await bench.run_pass(2)
    assert (way(bench, "prefill"), way(bench, "decode")) == ((1, 0), (0, 1))


async def test_the_user_s_fields_say_how_larger_pools_roll() -> None:
    bench = await serving({"rollout": {"maxSurge": 2, "maxUnavailable": 0}}, decode=3)
    assert way(bench, "decode") == (2, 0)
    bench.change_spec(rollout={"maxSurge": 0, "maxUnavailable": 2})
    template = bench.deployment("decode")["spec"]["template"]
    await bench.run_pass()
    assert way(bench, "decode") == (0, 2)
    assert bench.deployment("decode")["spec"]["template"] == template


async def test_a_roll_out_that_would_leave_nobody_waits_and_says_what_to_do() -> None:
    bench = await serving({"scaling.maxGPUs": 2})
    bench.change_spec(engine={"args": ["--new"]})
    await bench.run_pass(2)
    assert [args(bench, role) for role in POOLS] == [[], []]
    status, reason, message = bench.condition("Progressing")
    assert (status, reason) == ("False", "RolloutHeld")
    assert "scaling.maxGPUs 2 has no room" in message
    assert "raise it to 4" in message
    assert bench.condition("Stalled")[0] == "True"
    bench.change_spec(scaling={"maxGPUs": 4})
    await bench.run_pass()
    assert [args(bench, role) for role in POOLS] == [["--new"], ["--new"]]
    assert (way(bench, "prefill"), way(bench, "decode")) == ((1, 0), (1, 0))


async def test_pools_wait_together_for_a_new_revision_and_alone_for_a_template_of_their_own() -> None:
    bench = await serving({"scaling.maxGPUs": 4}, decode=3)
    bench.change_spec(engine={"args": ["--new"]})
    await bench.run_pass(2)
    assert [args(bench, role) for role in POOLS] == [[], []], "decode could roll, but would have no partner"
    bench.change_spec(engine={"args": None}, pools={"decode": {"template": CHANGED}})
    await bench.run_pass(2)
    assert (
        bench.deployment("decode")["spec"]["template"]["metadata"]["annotations"] == CHANGED["metadata"]["annotations"]
    )


async def test_what_never_served_is_mended_inside_the_budget() -> None:
    bench = Bench({"scaling.maxGPUs": 2, "engine.args": ["--broken"]})
    await bench.run_pass()
    bench.cluster.control()
    await bench.run_pass()
    bench.change_spec(engine={"args": ["--mended"]})
    await bench.run_pass()
    assert [args(bench, role) for role in POOLS] == [["--mended"], ["--mended"]]
    assert way(bench, "decode") == (0, 1)


async def test_growth_leaves_room_for_the_surge_of_the_same_pass() -> None:
    bench = await serving({"scaling.maxGPUs": 4})
    bench.planner.decode = 3
    bench.change_spec(engine={"args": ["--new"]})
    await bench.run_pass()
    assert bench.replicas("decode") == 3
    assert [args(bench, role) for role in POOLS] == [[], []], "prefill's only worker has no room for a successor"


async def test_nobody_begins_to_leave_in_the_pass_in_which_a_roll_out_begins() -> None:
    """Kubernetes would delete a Ready pod of the old template in a drained one's place."""
    bench = await serving(decode=3)
    bench.planner.decode = 2
    bench.change_spec(engine={"args": ["--new"]})
    writes = await bench.run_pass()
    assert args(bench, "decode") == ["--new"]
    assert [write for write in writes if write[1] == "Pod" or write[0] == "scale"] == []
    bench.change_spec(engine={"args": None})
    bench.make_ready()
    writes = await bench.run_pass(2)
    assert [write for write in writes if write[1] == "Pod"], "once it's over somebody does"


async def test_pools_roll_in_step() -> None:
    """Two prefill workers and four decode workers: the last old prefill worker stays until decode's last one goes."""
    bench = await serving(prefill=2, decode=4)
    bench.change_spec(engine={"args": ["--new"]})
    await bench.run_pass()
    assert paused(bench) == (False, False)
    for role in POOLS:
        replace_one(bench, role)
    await bench.run_pass()
    assert paused(bench) == (True, True), "each waits until the other one's first new worker is ready"
    for still in (True, True, False):
        bench.make_ready()
        await bench.run_pass()
        assert paused(bench) == (still, False)
        if still:
            replace_one(bench, "decode")


async def test_a_deployment_that_a_person_paused_stays_paused() -> None:
    bench = await serving(prefill=2, decode=4)
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", {"spec": {"paused": True}}, manager="kubectl")
    bench.change_spec(engine={"args": ["--new"]})
    await bench.run_pass(3)
    assert paused(bench) == (False, True)


# --- roll-outs that don't get on ---

NEVER_PULLS = {"name": "engine", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image: x:1"}}}
NEVER_READY = {"name": "engine", "ready": False, "started": True, "state": {"running": {}}}


async def stuck(container: dict[str, Any]) -> tuple[Bench, str]:
    """A decode pool whose first new pod says this for longer than the pending deadline; what Progressing says."""
    bench = await serving({"scaling.pendingDeadlineSeconds": 60}, decode=3)
    bench.change_spec(pools={"decode": {"template": CHANGED}})
    await bench.run_pass()
    name = replace_one(bench, "decode")
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": bench.clock().isoformat()}
    set_conditions(bench, name, conditions=[unready], containerStatuses=[container])
    await bench.run_pass()
    assert bench.condition("Progressing")[:2] == ("True", "RollingOut")
    bench.engines.now += 61
    await bench.run_pass()
    status, reason, message = bench.condition("Progressing")
    assert (status, reason) == ("False", "RolloutStuck")
    assert message.startswith(f"decode: 1 of 3 pods have the new template, and {name} isn't ready: ")
    assert "set it back" in message
    return bench, message


async def test_an_image_that_never_pulls_is_told_in_the_pod_s_words() -> None:
    _, message = await stuck(NEVER_PULLS)
    assert "ImagePullBackOff: no such image: x:1" in message


async def test_a_probe_that_never_passes_is_told() -> None:
    _, message = await stuck(NEVER_READY)
    assert "engine runs but its readiness probe doesn't pass" in message


async def test_a_spec_that_is_set_back_ends_a_stuck_roll_out() -> None:
    bench, _ = await stuck(NEVER_PULLS)
    bench.change_spec(pools={"decode": {"template": None}})
    await bench.run_pass()
    assert "annotations" not in bench.deployment("decode")["spec"]["template"]["metadata"]
    (broken,) = [pod for pod in bench.pods("decode") if not pod.ready]
    bench.cluster.remove(POD, KEY.namespace, broken.name)
    bench.make_ready()
    await bench.run_pass(2)
    assert bench.condition("Progressing")[:2] == ("True", "Settled")


async def test_decode_is_created_first_as_it_can_serve_alone() -> None:
    bench = Bench()
    created = [name for verb, kind, name in await bench.run_pass() if (verb, kind) == ("create", "Deployment")]
    assert created.index("served-decode") < created.index("served-prefill")
