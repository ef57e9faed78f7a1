"""The control loop: when passes happen, and that no object disturbs another."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from tests.support.duet_objects import minimal
from tests.support.operator_bench import KEY, Bench

from duet_operator.cluster import CONFIG_MAP, DEPLOYMENT, DUET, SERVICE, ClusterError, Kind, Listing
from duet_operator.lease import LeaseLostError
from duet_operator.loop import CHILD_KINDS, ControlLoop
from duet_operator.planner.types import Decision, PlannerMemory
from duet_operator.settings import Settings

SETTINGS = Settings(debounce_seconds=0.01, history_flush_seconds=3600, relist_seconds=3600)
LONG_INTERVAL = {
    "scaling.intervalSeconds": 300,
    "drain.timeoutSeconds": 600,
    "scaling.scaleDown.stabilizationSeconds": 300,
}


@asynccontextmanager
async def looping(bench: Bench, **changes: Any) -> AsyncIterator[ControlLoop]:
    """The loop at work; it must not have failed by itself."""
    loop = ControlLoop(cluster=bench.cluster, services=replace(bench.services(), **changes))
    task = asyncio.create_task(loop.run())
    try:
        yield loop
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, LeaseLostError):
            await task


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


def add(bench: Bench, name: str) -> None:
    bench.cluster.put(minimal(name=name))


def made(bench: Bench, name: str) -> bool:
    return ("Deployment", KEY.namespace, f"{name}-decode") in bench.cluster.objects


async def test_objects_that_are_there_and_that_come_later_are_served() -> None:
    bench = Bench(LONG_INTERVAL, settings=SETTINGS)
    async with looping(bench):
        await until(lambda: made(bench, KEY.name))
        add(bench, "later")
        await until(lambda: made(bench, "later"))


async def test_an_event_brings_a_pass_long_before_the_interval_is_over() -> None:
    bench = Bench(LONG_INTERVAL, settings=SETTINGS)
    async with looping(bench):
        await until(lambda: made(bench, KEY.name))
        bench.cluster.remove(SERVICE, KEY.namespace, KEY.name)
        await until(lambda: ("Service", KEY.namespace, KEY.name) in bench.cluster.objects)


async def test_the_interval_brings_passes_without_any_event() -> None:
    bench = Bench({"scaling.intervalSeconds": 1}, settings=SETTINGS)
    async with looping(bench):
        await until(lambda: bench.condition_known("Ready"))
        seen = len(bench.planner.seen)
        await until(lambda: len(bench.planner.seen) >= seen + 2)


async def test_nothing_is_done_before_everything_was_listed() -> None:
    bench = Bench(settings=SETTINGS)
    answers = iter([ClusterError("list", status=0, reason="Unreachable", message="")])
    real_list = bench.cluster.list

    async def flaky(kind: Kind, **options: Any) -> Listing:
        if (error := next(answers, None)) is not None:
            raise error
        return await real_list(kind, **options)

    bench.cluster.list = flaky  # type: ignore[method-assign]
    async with looping(bench) as loop:
        await asyncio.sleep(0.1)
        assert not loop.synchronised.is_set()
        assert bench.cluster.writes == []
        await until(lambda: made(bench, KEY.name))


async def test_an_object_never_has_two_passes_at_once() -> None:
    bench = Bench(settings=SETTINGS)
    running = most = 0

    class Slow:
        """A reader that takes its time."""

        async def read(self, pods: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.05)
            running -= 1
            return await bench.gateways.read(pods)

    async with looping(bench, reader=Slow()):
        await until(lambda: made(bench, KEY.name))
        for number in range(20):
            bench.cluster.edit(DUET, KEY.namespace, KEY.name, {"metadata": {"annotations": {"n": str(number)}}})
            await asyncio.sleep(0.01)
    assert most == 1


async def test_one_object_that_fails_leaves_the_others_alone() -> None:
    bench = Bench(settings=SETTINGS)
    add(bench, "healthy")

    def planner(observation: Any, memory: PlannerMemory, spec: Any, performance: Any) -> Decision:
        if spec.attainment_goal == 0.5:
            raise ArithmeticError("a defect")
        return bench.planner(observation, memory, spec, performance)

    bench.change_spec(slo={"attainmentBasisPoints": 5000})
    async with looping(bench, planner=planner):
        await until(lambda: made(bench, "healthy"))
        await until(lambda: b'duet_operator_passes_total{result="failed"} 1.0' in bench.metrics.exposition())
        assert not made(bench, KEY.name)


async def test_silent_gateways_of_many_objects_keep_no_other_object_waiting() -> None:
    bench = Bench({"scaling.intervalSeconds": 1}, settings=replace(SETTINGS, concurrent_passes=2))
    for number in range(20):
        add(bench, f"silent-{number}")
    waiting = 0

    class Silent:
        """A reader whose gateways never answer, but for one object: that has none."""

        async def read(self, pods: Any) -> Any:
            nonlocal waiting
            if pods:
                waiting += 1
                await asyncio.Event().wait()
            return await bench.gateways.read(pods)

    async with looping(bench, reader=Silent()):
        await until(lambda: made(bench, "silent-19"))
        bench.cluster.control()
        for gateway in bench.cluster.pods("gateway"):
            if gateway["metadata"]["name"].startswith("silent"):
                bench.make_ready_pod(gateway)
        await until(lambda: waiting >= 20)
        bench.cluster.remove(SERVICE, KEY.namespace, KEY.name)
        await until(lambda: ("Service", KEY.namespace, KEY.name) in bench.cluster.objects)
        add(bench, "later")
        await until(lambda: made(bench, "later"))


async def test_a_lost_lease_ends_the_loop() -> None:
    bench = Bench(settings=SETTINGS)
    bench.cluster.refuse = lambda _verb, _kind: LeaseLostError("lost")
    loop = ControlLoop(cluster=bench.cluster, services=bench.services())
    with pytest.raises(LeaseLostError):
        async with asyncio.timeout(20):
            await loop.run()
    assert bench.cluster.writes == []


async def test_nothing_goes_on_after_the_lease_was_lost_by_many_at_once() -> None:
    """Whatever fails with the first would begin another pass, without anybody who ends it."""
    bench = Bench(settings=SETTINGS)
    for number in range(5):
        add(bench, f"other-{number}")
    lost = asyncio.Event()

    async def refused(_manifest: dict[str, Any]) -> dict[str, Any]:
        await lost.wait()
        raise LeaseLostError("lost")

    bench.cluster.create = refused  # type: ignore[method-assign]
    loop = ControlLoop(cluster=bench.cluster, services=bench.services())
    running = asyncio.create_task(loop.run())
    await until(lambda: len(bench.planner.seen) == 6)
    lost.set()
    with pytest.raises(LeaseLostError):
        async with asyncio.timeout(20):
            await running
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("duet ")] == []
    assert not loop.synchronised.is_set()


async def test_an_object_of_the_same_name_starts_without_the_other_one_s_memory() -> None:
    bench = Bench({"scaling.intervalSeconds": 1}, settings=SETTINGS)
    marked = PlannerMemory(correction=1.5)

    def planner(observation: Any, memory: PlannerMemory, spec: Any, performance: Any) -> Decision:
        return replace(bench.planner(observation, memory, spec, performance), memory=marked)

    async with looping(bench, planner=planner):
        await until(lambda: bench.planner.memory == marked)
        bench.cluster.remove(DUET, KEY.namespace, KEY.name)
        add(bench, KEY.name)
        await until(lambda: bench.planner.memory == PlannerMemory())


async def test_memories_are_kept_at_the_end() -> None:
    bench = Bench(settings=SETTINGS)
    bench.planner.memory = PlannerMemory()

    def planner(observation: Any, memory: PlannerMemory, spec: Any, performance: Any) -> Decision:
        decision = bench.planner(observation, memory, spec, performance)
        return replace(decision, memory=PlannerMemory(correction=1.5))

    async with looping(bench, planner=planner) as loop:
        await until(lambda: bench.condition_known("Ready"))
    await loop.save_all()
    assert ("ConfigMap", KEY.namespace, "served-duet-history") in bench.cluster.objects
    assert bench.cluster.objects[CONFIG_MAP.name, KEY.namespace, "served-duet-history"]["data"]


async def test_a_watch_that_begins_anew_has_its_gap_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duet_operator.loop.GATHER_LISTINGS_SECONDS", 0.01)
    bench = Bench(LONG_INTERVAL, settings=SETTINGS)
    async with looping(bench) as loop:
        await until(lambda: made(bench, KEY.name))
        bench.cluster.subscribers.clear()
        bench.cluster.remove(DEPLOYMENT, KEY.namespace, "served-prefill")
        loop.list_soon(DEPLOYMENT.name)
        await until(lambda: ("create", "Deployment", "served-prefill") in bench.cluster.writes[-12:])
        await until(lambda: ("Deployment", KEY.namespace, "served-prefill") in bench.cluster.objects)


async def test_only_what_a_watch_may_have_missed_is_listed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that had listed before the first list has no gap; one that lists after it may have."""
    monkeypatch.setattr("duet_operator.loop.GATHER_LISTINGS_SECONDS", 0.01)
    bench = Bench(LONG_INTERVAL, settings=SETTINGS)
    real_list, listed = bench.cluster.list, list[str]()

    async def counting(kind: Kind, **options: Any) -> Listing:
        listed.append(kind.name)
        if kind is DEPLOYMENT:
            loop.list_soon(SERVICE.name)  # It is listed next.
        return await real_list(kind, **options)

    bench.cluster.list = counting  # type: ignore[method-assign]
    async with looping(bench) as loop:
        await until(lambda: made(bench, KEY.name))
        assert sorted(listed) == sorted({kind.name for kind in (*CHILD_KINDS, DUET)})
        loop.list_soon(CONFIG_MAP.name)
        await until(lambda: len(listed) > len(CHILD_KINDS) + 1)
        await asyncio.sleep(0.05)
    assert listed[len(CHILD_KINDS) + 1 :] == [CONFIG_MAP.name]


async def test_what_a_watch_never_told_is_found_by_the_next_list() -> None:
    bench = Bench(LONG_INTERVAL, settings=replace(SETTINGS, relist_seconds=0.05))
    async with looping(bench):
        await until(lambda: made(bench, KEY.name))
        bench.cluster.subscribers.clear()
        bench.cluster.remove(SERVICE, KEY.namespace, KEY.name)
        await until(lambda: ("Service", KEY.namespace, KEY.name) in bench.cluster.objects)
        add(bench, "unseen")
        await until(lambda: made(bench, "unseen"))


async def test_a_list_that_fails_is_tried_again_without_another_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duet_operator.loop.GATHER_LISTINGS_SECONDS", 0.01)
    monkeypatch.setattr("duet_operator.loop.FIRST_BACKOFF_SECONDS", 0.01)
    bench = Bench(LONG_INTERVAL, settings=SETTINGS)
    real_list = bench.cluster.list
    errors: list[Exception] = []

    async def flaky(kind: Kind, **options: Any) -> Listing:
        if errors:
            raise errors.pop()
        return await real_list(kind, **options)

    bench.cluster.list = flaky  # type: ignore[method-assign]
    async with looping(bench) as loop:
        await until(lambda: made(bench, KEY.name))
        bench.cluster.subscribers.clear()
        bench.cluster.remove(DEPLOYMENT, KEY.namespace, "served-prefill")
        errors += [ArithmeticError("a defect"), ClusterError("list", status=0, reason="Unreachable", message="")]
        loop.list_soon(DEPLOYMENT.name)
        await until(lambda: ("Deployment", KEY.namespace, "served-prefill") in bench.cluster.objects)


async def test_an_object_that_goes_while_memories_are_saved_ends_nothing() -> None:
    bench = Bench(LONG_INTERVAL, settings=replace(SETTINGS, history_flush_seconds=0.01))
    add(bench, "other")

    def planner(observation: Any, memory: PlannerMemory, spec: Any, performance: Any) -> Decision:
        decision = bench.planner(observation, memory, spec, performance)
        return replace(decision, memory=PlannerMemory(correction=1.5))

    real_create = bench.cluster.create
    saved: list[str] = []

    async def create(manifest: dict[str, Any]) -> dict[str, Any]:
        if manifest["metadata"]["name"].endswith("-duet-history"):
            saved.append(manifest["metadata"]["name"])
            for name in (KEY.name, "other"):
                if not manifest["metadata"]["name"].startswith(name):
                    bench.cluster.remove(DUET, KEY.namespace, name)
                    await until(lambda name=name: KEY._replace(name=name) not in loop._controllers)  # type: ignore[misc]
            raise ArithmeticError("a defect")
        return await real_create(manifest)

    bench.cluster.create = create  # type: ignore[method-assign]
    async with looping(bench, planner=planner) as loop:
        await until(lambda: len(saved) >= 2)
