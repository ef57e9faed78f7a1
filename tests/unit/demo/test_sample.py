"""The bundled sample: the same for ever, and shaped like the published traces."""

import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from duet_dev.demo.sample import CODE, CONVERSATION, Kind, bundled_sample

DIGEST = "032e684eb4370dad"


def test_the_sample_is_pinned() -> None:
    pinned = [(each.time_seconds, each.input_tokens, each.output_tokens) for each in bundled_sample()]
    text = json.dumps(pinned)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGEST


def test_another_seed_is_another_sample() -> None:
    assert bundled_sample(1) != bundled_sample(2)


def test_arrivals_are_in_order_and_in_time() -> None:
    arrivals = bundled_sample()
    assert all(one.time_seconds <= other.time_seconds for one, other in pairwise(arrivals))
    assert 0 <= arrivals[0].time_seconds < 10
    assert 180 < arrivals[-1].time_seconds < 200


@pytest.mark.parametrize(
    ("kind", "input_shape", "output_shape"),
    [
        pytest.param(CODE, (2048, 1469, 7303), (28, 13, 90), id="code"),
        pytest.param(CONVERSATION, (1155, 1020, 4083), (211, 129, 451), id="conversation"),
    ],
)
def test_lengths_have_the_published_shape(
    kind: Kind, input_shape: tuple[int, int, int], output_shape: tuple[int, int, int]
) -> None:
    arrivals = bundled_sample(kinds=(kind,))
    assert len(arrivals) > 150
    for lengths, (mean, middle, tail) in (
        ([arrival.input_tokens for arrival in arrivals], input_shape),
        ([arrival.output_tokens for arrival in arrivals], output_shape),
    ):
        assert np.mean(lengths) == pytest.approx(mean, rel=0.03)
        assert np.quantile(lengths, 0.5) == pytest.approx(middle, rel=0.03)
        assert np.quantile(lengths, 0.95) == pytest.approx(tail, rel=0.03)


def test_the_rate_follows_a_quiet_start_a_burst_a_lull_and_a_moderate_end() -> None:
    def rate(start: float, end: float) -> float:
        return sum(start <= arrival.time_seconds < end for arrival in bundled_sample()) / (end - start)

    quiet, burst, lull, end = rate(0, 30), rate(60, 95), rate(105, 155), rate(170, 200)
    assert max(quiet, lull) < burst / 4
    assert 1.5 * max(quiet, lull) < end < burst / 2


def test_arrival_times_are_poisson() -> None:
    """The gaps of a steady rate have the mean and the spread of an exponential distribution."""
    steady = replace(CODE, requests_per_second=((0, 2), (500, 4), (1000, 6), (3000, 6)))
    times = [a.time_seconds for a in bundled_sample(kinds=(steady,)) if a.time_seconds > 1000]
    gaps = np.diff(times)
    assert np.mean(gaps) == pytest.approx(1 / 6, rel=0.03)
    assert np.std(gaps) == pytest.approx(1 / 6, rel=0.05)
