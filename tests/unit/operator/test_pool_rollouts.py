"""How pools begin and roll: decode first; the only worker stays until its successor serves, within the budget."""

from tests.support.operator_bench import Bench


def rolling(bench: Bench, role: str) -> tuple[int, int]:
    """maxSurge and maxUnavailable."""
    update = bench.deployment(role)["spec"]["strategy"]["rollingUpdate"]
    return update["maxSurge"], update["maxUnavailable"]


async def test_the_only_worker_of_a_pool_is_replaced_after_its_successor_serves() -> None:
    bench = Bench()
    await bench.run_pass()
    assert (rolling(bench, "prefill"), rolling(bench, "decode")) == ((1, 0), (1, 0))
    bench.planner.decode = 3
    await bench.run_pass(2)
    assert (rolling(bench, "prefill"), rolling(bench, "decode")) == ((1, 0), (0, 1))


async def test_no_pool_surges_beyond_the_budget() -> None:
    bench = Bench({"scaling.maxGPUs": 3})
    await bench.run_pass()
    assert (rolling(bench, "prefill"), rolling(bench, "decode")) == ((0, 1), (1, 0))


async def test_decode_is_created_first_as_it_can_serve_alone() -> None:
    bench = Bench()
    created = [name for verb, kind, name in await bench.run_pass() if (verb, kind) == ("create", "Deployment")]
    assert created.index("served-decode") < created.index("served-prefill")
