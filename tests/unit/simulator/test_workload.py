"""Workloads: traces keep what they say, made-up ones have the stated rate, burstiness and lengths, all by seed."""

from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_engine.simulator.lengths import Exponential, Fixed, HeavyTail, Lengths, LogNormal, Quantiles, Sampled, whole
from duet_engine.simulator.synthetic import Clients, Rate, SharedPrefix, Traffic, client_traffic, mixed
from duet_engine.simulator.workload import Request, copied, from_trace, limited, merged, mooncake_lines, sped_up
from duet_engine.traces import SkippedLines, TraceError

MOONCAKE = (
    '{"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [7, 8]}',
    "nonsense",
    '{"timestamp": 1500, "input_length": 9, "output_length": 0}',
    '{"timestamp": 500, "input_length": 9, "output_length": 1}',
    '{"timestamp": 3000, "input_length": 30, "output_length": 1}',
)

arrival_gaps = st.lists(st.floats(min_value=0, max_value=5), min_size=1, max_size=40)


def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(MOONCAKE) + "\n")
    return path


def stream(gaps: list[float]) -> list[Request]:
    return [Request(float(time), 10 + index, 5, (index,)) for index, time in enumerate(np.cumsum(gaps))]


def plain(rate: Rate, **changes: object) -> Traffic:
    return Traffic(**{"rate": rate, "input_tokens": Fixed(100), "output_tokens": Fixed(10)} | changes)  # type: ignore[arg-type]


def gap_variation(requests: list[Request]) -> float:
    gaps = [later.arrival_seconds - earlier.arrival_seconds for earlier, later in pairwise(requests)]
    return float(np.std(gaps) / np.mean(gaps))


def test_a_bad_line_is_an_error_with_file_line_and_reason(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"trace\.jsonl: line 2: isn't JSON"):
        list(from_trace(trace(tmp_path)))


def test_skipped_lines_are_counted_and_the_first_reasons_kept(tmp_path: Path) -> None:
    skipped = SkippedLines()
    found = list(from_trace(trace(tmp_path), skipped=skipped))
    assert found == [Request(0.0, 700, 5, (7, 8)), Request(2.0, 30, 1)]
    assert skipped.count == 3
    assert [reason.split(": ", 2)[1] for reason in skipped.reasons] == ["line 2", "line 3", "line 4"]


def test_a_trace_of_bad_lines_alone_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(TraceError, match="holds no request"):
        list(from_trace(path, skipped=SkippedLines()))


@settings(max_examples=30)
@given(arrival_gaps, st.integers(1, 5), st.floats(0, 20), st.integers(0, 3))
def test_copies_come_in_order_and_share_no_prefix(gaps: list[float], copies: int, jitter: float, seed: int) -> None:
    requests = stream(gaps)
    found = list(copied(requests, copies, jitter_seconds=jitter, seed=seed))
    assert len(found) == copies * len(requests)
    assert all(one.arrival_seconds <= other.arrival_seconds for one, other in pairwise(found))
    assert len({request.prefix_block_hashes for request in found}) == len(found)
    assert found == list(copied(requests, copies, jitter_seconds=jitter, seed=seed))


def test_copies_of_one_request_stay_within_the_jitter_and_keep_their_common_prefix() -> None:
    requests = [Request(10.0, 2000, 5, (1, 2)), Request(20.0, 2000, 5, (1, 3))]
    found = list(copied(requests, 3, jitter_seconds=4.0, seed=1))
    assert all(10 <= each.arrival_seconds <= 14 or 20 <= each.arrival_seconds <= 24 for each in found)
    firsts = [each.prefix_block_hashes[0] for each in found]
    assert sorted(firsts) == sorted(2 * list(set(firsts)))


def test_workloads_are_cut_sped_up_and_merged_as_streams() -> None:
    endless = (Request(float(index), 1, 1) for index in iter(int, 1))
    assert next(iter(merged([endless, endless]))) == Request(0.0, 1, 1)
    requests = stream([1.0] * 10)
    assert [each.arrival_seconds for each in limited(sped_up(requests, 2.0), 3.0)] == [0.5, 1.0, 1.5, 2.0, 2.5]
    with pytest.raises(ValueError, match="speed: must be above 0"):
        list(sped_up(requests, 0.0))


@pytest.mark.parametrize("variation", [0.2, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(variation: float) -> None:
    found = list(plain(Rate.constant(20.0, seconds=1000.0), variation=variation).requests(7))
    assert len(found) == pytest.approx(20_000, rel=0.1)
    assert gap_variation(found) == pytest.approx(variation, rel=0.1)


@pytest.mark.parametrize(
    ("rate", "window", "expected"),
    [
        (Rate.bursts(5.0, seconds=1000, factor=8.0, every_seconds=200, lasting_seconds=50), (150, 200), 2000),
        (Rate.bursts(5.0, seconds=1000, factor=8.0, every_seconds=200, lasting_seconds=50), (200, 350), 750),
        (Rate.diurnal(10.0, seconds=7200, lowest_share=0.2, period_seconds=3600), (0, 36), 73.3),
        (Rate.diurnal(10.0, seconds=7200, lowest_share=0.2, period_seconds=3600), (1782, 1818), 648),
        (Rate.through([(0, 0), (100, 10), (200, 0)]), (0, 50), 125),
    ],
)
def test_rates_follow_their_course(rate: Rate, window: tuple[float, float], expected: float) -> None:
    """Counted over many seeds, so that chance doesn't decide."""
    seeds = range(3 if expected > 100 else 20)
    found = [
        sum(each.arrival_seconds >= window[0] for each in limited(plain(rate, variation=0.5).requests(seed), window[1]))
        for seed in seeds
    ]
    assert np.mean(found) == pytest.approx(expected, rel=0.1)


def test_changing_lengths_leaves_arrivals_and_a_seed_gives_the_same_stream() -> None:
    rate = Rate.constant(5.0, seconds=100)
    one, other = plain(rate), plain(rate, input_tokens=LogNormal(500, 2.0))
    assert [each.arrival_seconds for each in one.requests(3)] == [each.arrival_seconds for each in other.requests(3)]
    assert list(other.requests(3)) == list(other.requests(3))
    assert list(other.requests(3)) != list(other.requests(4))


@pytest.mark.parametrize(
    "lengths",
    [
        Fixed(300),
        Exponential(400),
        LogNormal(800, 1.5),
        HeavyTail(LogNormal(500, 1.0), 0.1, 2000, 3.0),
        Quantiles(((0, 10), (0.5, 100), (1, 1000))),
        Sampled((5, 10, 90)),
    ],
)
def test_lengths_have_the_stated_mean(lengths: Lengths) -> None:
    drawn = whole(lengths.draw(100_000, np.random.default_rng(1)))
    assert min(drawn) >= 1
    assert np.mean(drawn) == pytest.approx(lengths.mean_tokens, rel=0.02)


def test_quantiles_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="shares must rise from 0 to 1"):
        Quantiles(((0, 1), (0.5, 2)))
    with pytest.raises(ValueError, match="tokens must rise"):
        Quantiles(((0, 5), (1, 2)))


def test_requests_of_a_group_share_their_prefix() -> None:
    prefix = SharedPrefix(blocks=3, groups=2)
    found = list(plain(Rate.constant(5.0, seconds=100), prefix=prefix).requests(1))
    assert {each.input_tokens for each in found} == {3 * 512 + 100}
    assert {len(each.prefix_block_hashes) for each in found} == {3}
    assert len({each.prefix_block_hashes for each in found}) == 2


def test_many_clients_make_a_skewed_bursty_workload_of_the_stated_size() -> None:
    clients = Clients(rate=Rate.constant(30.0, seconds=1000), count=40, prefix_blocks=1)
    found = list(mixed(client_traffic(clients, 5), 5))
    assert len(found) == pytest.approx(30_000, rel=0.1)
    assert np.mean([each.output_tokens for each in found]) == pytest.approx(250, rel=0.1)
    assert np.mean([each.input_tokens - 512 for each in found]) == pytest.approx(1500, rel=0.1)
    per_client = sorted(np.unique([each.prefix_block_hashes[0] for each in found], return_counts=True)[1])
    assert sum(per_client[-4:]) > 0.5 * len(found)
    assert gap_variation(found) > 1.1


def test_a_days_workload_starts_at_once() -> None:
    """Only a stream gives its first requests without making the rest."""
    month = plain(Rate.constant(1e6, seconds=30 * 86_400.0))
    assert len(list(islice(month.requests(1), 10))) == 10


def test_a_workload_written_as_a_trace_reads_back(tmp_path: Path) -> None:
    made = list(plain(Rate.constant(5.0, seconds=60), prefix=SharedPrefix(blocks=2, groups=3)).requests(1))
    (tmp_path / "made.jsonl").write_text("\n".join(mooncake_lines(made)))
    read = list(from_trace(tmp_path / "made.jsonl"))
    for one, other in zip(read, made, strict=True):
        assert replace(one, arrival_seconds=0.0) == replace(other, arrival_seconds=0.0)
        assert one.arrival_seconds == pytest.approx(other.arrival_seconds - made[0].arrival_seconds, abs=0.0011)
