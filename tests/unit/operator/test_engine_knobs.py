"""Without a gateway the operator brings live settings to engines: on a change, and again to who may lack them."""

import copy
from typing import Any

from tests.support.operator_bench import KEY, Bench

from duet_operator.cluster import POD
from duet_operator.engine_knobs import REPEAT_SECONDS

NO_GATEWAY = {"gateway.enabled": False, "pools.prefill.minReplicas": 1}


async def settled(spec: dict[str, Any]) -> Bench:
    bench = Bench(spec)
    await bench.run_pass()
    bench.make_ready()
    await bench.run_pass()
    return bench


def taken(bench: Bench) -> list[tuple[str, int]]:
    """Pod and ITL objective of each push since the last look."""
    found = [(pod, knobs.itl_milliseconds) for pod, knobs in bench.engines.knobs]
    bench.engines.knobs.clear()
    return found


async def test_a_live_field_reaches_engines_and_rolls_none() -> None:
    bench = await settled(NO_GATEWAY)
    (engine,) = bench.pods("decode")
    assert taken(bench) == [(engine.name, 50)]
    template = copy.deepcopy(bench.deployment("decode")["spec"]["template"])
    bench.change_spec(slo={"itlMilliseconds": 20})
    await bench.run_pass()
    (push,) = bench.engines.knobs
    assert push[1].generation == bench.duet["metadata"]["generation"]
    assert taken(bench) == [(engine.name, 20)]
    assert bench.deployment("decode")["spec"]["template"] == template
    await bench.run_pass(3)
    assert taken(bench) == []


async def test_an_engine_that_restarted_or_was_unreachable_gets_them_again() -> None:
    bench = await settled(NO_GATEWAY)
    (engine,) = bench.pods("decode")
    taken(bench)
    for status in ("False", "True"):
        bench.engines.now += 5
        condition = {"type": "Ready", "status": status, "lastTransitionTime": bench.clock().isoformat()}
        bench.cluster.set_status(POD, KEY.namespace, engine.name, conditions=[condition])
        await bench.run_pass()
    assert taken(bench) == [(engine.name, 50)]
    bench.engines.unreachable.add(engine.uid)
    bench.change_spec(slo={"itlMilliseconds": 20})
    await bench.run_pass()
    assert taken(bench) == []
    bench.engines.unreachable.clear()
    await bench.run_pass()
    assert taken(bench) == [(engine.name, 20)]
    bench.engines.now += REPEAT_SECONDS
    await bench.run_pass()
    assert taken(bench) == [(engine.name, 20)], "a restart may go unseen"


async def test_with_a_gateway_they_are_the_gateway_s_matter() -> None:
    bench = await settled({})
    assert taken(bench) == []
