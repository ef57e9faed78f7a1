"""The planner in a toy world that does what it says: a load step, a lull, noise, a cold start, missed objectives."""

import random
from bisect import bisect

import pytest
from tests.support.planning import Toy, bounds, demand, spec

from duet_operator.planner.reasons import Reason
from duet_operator.planner.types import Attainment, Demand

START = 1_000_000.0
STEP_AT, LULL_AT = 600.0, 1200.0
QUIET, BUSY = 5.0, 20.0


def rate(now_seconds: float) -> float:
    return BUSY if STEP_AT <= now_seconds - START < LULL_AT else QUIET


@pytest.fixture(scope="module")
def stepped() -> Toy:
    toy = Toy(spec=spec(), load=lambda now: demand(rate(now)))
    toy.run(2000)
    return toy


def at(toy: Toy, seconds: float) -> int:
    """Workers asked for in the last pass before this moment."""
    return sum(toy.counts[int(seconds / toy.spec.interval_seconds) - 1])


def test_step_is_answered_within_two_passes(stepped: Toy) -> None:
    passes_later = STEP_AT + 2 * stepped.spec.interval_seconds
    assert at(stepped, passes_later) == at(stepped, LULL_AT) > at(stepped, STEP_AT)


def test_lull_is_answered_after_stabilization_and_not_before(stepped: Toy) -> None:
    stabilization = stepped.spec.stabilization_seconds
    assert at(stepped, LULL_AT + stabilization - 10) == at(stepped, LULL_AT)
    assert at(stepped, LULL_AT + stabilization + 120) == at(stepped, STEP_AT)


def test_steady_load_changes_nothing(stepped: Toy) -> None:
    between = stepped.counts[int((STEP_AT + 15) / 5) : int(LULL_AT / 5)]
    assert len(set(between)) == 1


def test_reasons_follow_the_load(stepped: Toy) -> None:
    grown = stepped.decisions[int(STEP_AT / 5)]
    assert grown.reason == Reason.LOAD_RISING
    held = stepped.decisions[int((LULL_AT + 100) / 5)]
    assert held.reason == Reason.STABILIZATION
    shrinking = [each for each in stepped.decisions[int(LULL_AT / 5) :] if each.reason == Reason.LOAD_FALLING]
    assert shrinking


@pytest.mark.parametrize("seed", range(3))
def test_ten_percent_noise_does_not_oscillate(seed: int) -> None:
    """Once the noise is known, a count may still rise to a rare peak, but is never given up and asked for again."""
    noise = random.Random(seed)
    toy = Toy(spec=spec(), load=lambda _: demand(BUSY * noise.uniform(0.9, 1.1)))
    toy.run(600)
    toy.counts.clear()
    toy.run(1800)
    assert toy.actions() <= 2


@pytest.mark.parametrize("seed", range(2))
def test_overlapping_windows_of_random_arrivals_are_calm(seed: int) -> None:
    """Poisson arrivals of log-normal prompts over windows of 30 s, looked at every 5 s."""
    chance = random.Random(seed)
    arrivals: list[tuple[float, ...]] = []
    now = START - 60
    while now < START + 3700:
        now += chance.expovariate(10)
        arrivals.append((now, chance.lognormvariate(6.4, 1.0), chance.lognormvariate(5.0, 0.7)))

    def window(now_seconds: float) -> Demand:
        seen = arrivals[bisect(arrivals, (now_seconds - 30,)) : bisect(arrivals, (now_seconds,))]
        prompts = sorted(each[1] for each in seen)
        answers = sum(each[2] for each in seen)
        return demand(
            len(seen) / 30,
            input_tokens=sum(prompts) / len(seen),
            output_tokens=answers / len(seen),
            window_seconds=30.0,
            p95_input_tokens=prompts[int(0.95 * len(prompts))],
        )

    toy = Toy(spec=spec(), load=window)
    toy.run(2400)
    assert toy.actions() <= 12
    sizes = [prefill + decode for prefill, decode in toy.counts[120:]]
    assert max(sizes) <= 1.6 * min(sizes)


def test_ramp_is_met_ahead_of_time() -> None:
    """A load that doubles in ten minutes: what is asked for now holds what comes a cold start later."""
    toy = Toy(
        spec=spec(prefill=bounds(0, 60), decode=bounds(1, 60)),
        load=lambda now: demand(10 + 10 * (now - START) / 600),
        cold_start_seconds=120.0,
    )
    toy.run(600)
    ahead = toy.decisions[-1].forecast["requests_per_second_milli"]
    assert 1.08 * 20_000 <= ahead <= 1.3 * 20_000


def test_missed_objectives_add_workers_slowly_and_not_while_pods_start() -> None:
    toy = Toy(spec=spec(), load=lambda _: demand(BUSY))
    toy.run(600)
    before = sum(toy.counts[-1])
    toy.attainment = Attainment(window_seconds=30.0, completed_requests=600, met_both_share=0.9, capacity_misses=60)
    toy.step()
    assert sum(toy.counts[-1]) == before
    toy.run(600)
    assert before < sum(toy.counts[-1]) <= 2 * before
    assert 1.1 < toy.memory.correction <= 2.0


def test_misses_of_a_pool_at_its_bound_teach_nothing_about_the_model() -> None:
    toy = Toy(spec=spec(prefill=bounds(0, 1), decode=bounds(1, 1)), load=lambda _: demand(BUSY))
    toy.run(60)
    toy.attainment = Attainment(window_seconds=30.0, completed_requests=600, met_both_share=0.5, capacity_misses=300)
    toy.run(600)
    assert toy.memory.correction == 1.0


def test_misses_that_capacity_cannot_prevent_add_nothing() -> None:
    toy = Toy(spec=spec(), load=lambda _: demand(BUSY))
    toy.run(600)
    before = toy.counts[-1]
    toy.attainment = Attainment(window_seconds=30.0, completed_requests=600, met_both_share=0.5, capacity_misses=0)
    toy.run(600)
    assert toy.counts[-1] == before


def test_long_cold_start_is_no_reason_to_ask_again() -> None:
    """Pods that are starting are coming capacity, however long they take."""
    toy = Toy(spec=spec(), load=lambda _: demand(BUSY, waiting_tokens=10_000), cold_start_seconds=900.0)
    toy.run(800)
    assert len(set(toy.counts[2:])) == 1
