"""Another version of the operator rolls nothing: pod templates stay until the spec or an annotation moves them.

The next version is this one with other builders: other probes, variables, grace, images, and another way to compute
revisions.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.operator_bench import KEY, Bench

from duet_operator.api.v1alpha1 import parse
from duet_operator.cluster import DEPLOYMENT, DUET
from duet_operator.resources import children, pools
from duet_operator.resources.labels import REVISION
from duet_operator.resources.pins import PIN_ANNOTATION, UPGRADE_ANNOTATION, is_due, read_pin
from duet_operator.settings import Settings

GOLDEN = Path(__file__).parent / "golden" / "deployment-of-0.1.0.json"
DEPLOYMENTS = ("prefill", "decode", "gateway")


@pytest.fixture
def bench() -> Bench:
    return Bench(settings=Settings(engine_image="engine:1", gateway_image="gateway:1"))


async def settled(bench: Bench) -> None:
    await bench.run_pass()
    bench.make_ready()
    await bench.run_pass(2)


def templates(bench: Bench) -> dict[str, Any]:
    return {name: copy.deepcopy(bench.deployment(name)["spec"]["template"]) for name in DEPLOYMENTS}


def revisions(bench: Bench) -> list[str]:
    return [template["metadata"]["labels"].get(REVISION) for name, template in templates(bench).items()][:2]


def next_version(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an upgrade of the operator brings."""

    def derived_otherwise(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest = copy.deepcopy(manifest)
        if manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"]["spec"]
            pod["terminationGracePeriodSeconds"] += 30
            pod["securityContext"]["fsGroup"] = 1000
            pod["containers"][0]["readinessProbe"]["periodSeconds"] = 3
            pod["containers"][0].setdefault("env", []).append({"name": "DUET_NEW", "value": "1"})
        return manifest

    build_pool, build_others, hash_of = pools.pool_deployment, children.plain_children, pools.revision
    builders = "duet_operator.resources.rendering"
    monkeypatch.setattr(f"{builders}.pool_deployment", lambda *a, **k: derived_otherwise(build_pool(*a, **k)))
    monkeypatch.setattr(f"{builders}.plain_children", lambda *a: tuple(map(derived_otherwise, build_others(*a))))
    monkeypatch.setattr(pools, "revision", lambda *a: f"v2-{hash_of(*a)}"[:10])
    monkeypatch.setattr("duet_operator.upkeep.package_version", lambda: "99.0.0")
    bench.settings = Settings(engine_image="engine:2", gateway_image="gateway:2")
    bench.controller = bench.new_controller()


def annotate(bench: Bench, value: str | None) -> None:
    bench.cluster.edit(DUET, KEY.namespace, KEY.name, {"metadata": {"annotations": {UPGRADE_ANNOTATION: value}}})


def image(template: dict[str, Any]) -> str:
    return str(template["spec"]["containers"][0]["image"])


async def test_the_next_version_rolls_nothing_and_writes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await settled(bench)
    before = templates(bench)
    next_version(bench, monkeypatch)
    assert [write for write in await bench.run_pass(3) if write[1] != "DuetDeployment"] == []
    assert templates(bench) == before
    assert bench.duet["status"]["resolved"]["engineImage"] == "engine:1"
    bench.engines.now += bench.settings.status_refresh_seconds
    await bench.run_pass()
    assert "duetserve.io/upgrade" in bench.condition("Progressing")[2]


async def test_nor_does_a_lost_status(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await settled(bench)
    before, version = templates(bench), bench.duet["status"]["resolved"]["operatorVersion"]
    next_version(bench, monkeypatch)
    bench.cluster.edit(DUET, KEY.namespace, KEY.name, {"status": None})
    await bench.run_pass(3)
    assert templates(bench) == before
    told = bench.duet["status"]["resolved"]
    assert (told["operatorVersion"], told["engineImage"], told["gatewayImage"]) == (version, "engine:1", "gateway:1")


async def test_the_annotation_moves_them_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await settled(bench)
    before = templates(bench)
    next_version(bench, monkeypatch)
    annotate(bench, "2026-11-21")
    await bench.run_pass()
    moved = templates(bench)
    for name in DEPLOYMENTS:
        assert moved[name] != before[name]
        assert image(moved[name]).endswith(":2")
    assert (
        len(set(revisions(bench))) == 1
        and revisions(bench) != [template["metadata"]["labels"].get(REVISION) for template in before.values()][:2]
    )
    assert bench.duet["status"]["resolved"]["operatorVersion"] == "99.0.0"
    bench.make_ready()
    await bench.run_pass(2)
    assert [write for write in await bench.run_pass(2) if write[1] == "Deployment"] == []
    monkeypatch.undo()
    for value in ("2026-11-21", None):
        annotate(bench, value)
        await bench.run_pass(2)
        assert templates(bench) == moved, "a value that was carried out, or taken away, moves nothing"
    annotate(bench, "2026-11-22")
    await bench.run_pass(2)
    assert templates(bench) != moved


async def test_an_upgrade_is_carried_out_for_the_other_pool_after_a_refusal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(bench)
    next_version(bench, monkeypatch)
    annotate(bench, "now")
    apply = bench.cluster.apply

    async def refuse_prefill(manifest: dict[str, Any]) -> dict[str, Any]:
        if manifest["metadata"]["name"] == "served-prefill":
            raise RuntimeError("the operator ends here")
        return await apply(manifest)

    monkeypatch.setattr(bench.cluster, "apply", refuse_prefill)
    with pytest.raises(RuntimeError):
        await bench.run_pass()
    assert len(set(revisions(bench))) == 2
    monkeypatch.setattr(bench.cluster, "apply", apply)
    await bench.run_pass()
    assert len(set(revisions(bench))) == 1
    assert {image(template)[-2:] for template in templates(bench).values()} == {":2"}


async def test_a_change_of_the_spec_takes_what_the_present_version_derives(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(bench)
    before = templates(bench)
    next_version(bench, monkeypatch)
    bench.change_spec(engine={"args": ["--changed"]})
    await bench.run_pass()
    moved = templates(bench)
    assert moved["gateway"] == before["gateway"]
    for name in ("prefill", "decode"):
        assert {"name": "DUET_NEW", "value": "1"} in moved[name]["spec"]["containers"][0]["env"]
        assert image(moved[name]) == "engine:1", "the engine itself moves only on purpose"


@pytest.mark.parametrize("lost", [False, True], ids=["template changed", "Deployment deleted"])
async def test_a_pool_that_is_made_anew_alone_still_pairs_with_the_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    await settled(bench)
    before = templates(bench)
    next_version(bench, monkeypatch)
    if lost:
        bench.cluster.remove(DEPLOYMENT, KEY.namespace, "served-prefill")
    else:
        bench.change_spec(pools={"prefill": {"template": {"metadata": {"annotations": {"a": "b"}}}}})
    await bench.run_pass()
    moved = templates(bench)
    assert moved["prefill"] != before["prefill"]
    assert moved["decode"] == before["decode"]
    assert len(set(revisions(bench))) == 1
    assert image(moved["prefill"]) == "engine:1"


async def test_a_spec_that_changes_and_changes_back_ends_where_it_began(bench: Bench) -> None:
    await settled(bench)
    before = templates(bench)
    bench.change_spec(engine={"args": ["--broken"]})
    await bench.run_pass()
    assert templates(bench) != before
    bench.change_spec(engine={"args": None})
    await bench.run_pass()
    assert templates(bench) == before


async def test_somebody_else_s_edit_of_a_kept_template_is_undone_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(bench)
    before = templates(bench)
    next_version(bench, monkeypatch)
    theirs = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
    bench.cluster.edit(DEPLOYMENT, KEY.namespace, "served-decode", theirs)
    await bench.run_pass()
    assert templates(bench) == before


@pytest.mark.parametrize("spoilt", [None, "", "{", "[]", '{"template": 1, "parts": {}}', '{"template": {}}'])
def test_a_pin_that_cannot_be_read_is_none(spoilt: str | None) -> None:
    annotations = {} if spoilt is None else {PIN_ANNOTATION: spoilt}
    assert read_pin({"metadata": {"annotations": annotations}}) is None


def test_what_version_0_1_0_recorded_is_still_understood() -> None:
    """The file is what 0.1.0 wrote; it isn't rewritten when this version writes something else."""
    recorded = json.loads(GOLDEN.read_text())
    pin = read_pin(recorded["deployment"])
    assert pin is not None
    assert not is_due(pin, parse(recorded["object"]).spec, "decode", upgrade="")
