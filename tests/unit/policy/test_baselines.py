"""Each baseline does what its name says, and none sends a prompt where it can't go."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.routing import decode, prefill, prompt

from duet_engine.policy.baselines import (
    Baseline,
    LeastLoaded,
    LeastTTFT,
    PrefixThreshold,
    RoundRobin,
    RoutingPolicy,
    baseline,
)
from duet_engine.policy.chunks import DecodeBatch
from duet_engine.policy.deflect import has_room
from duet_engine.policy.dispatch import DeflectReason, Hold, HoldReason, Local, Pair
from duet_engine.policy.estimates import prefill_path_seconds
from duet_engine.policy.fleet import Fleet, Prompt

PROMPT = prompt(ttft_objective_seconds=0.8)


fleets = st.builds(
    Fleet,
    st.lists(
        st.builds(
            prefill,
            st.sampled_from(["p0", "p1", "p2", "p3"]),
            revision=st.sampled_from("rs"),
            ahead_seconds=st.floats(0, 2),
        ),
        max_size=3,
        unique_by=lambda worker: worker.key,
    ).map(tuple),
    st.lists(
        st.builds(
            decode,
            st.sampled_from(["d0", "d1", "d2", "d3"]),
            revision=st.sampled_from("rs"),
            batch=st.builds(DecodeBatch, requests=st.integers(0, 200), context_tokens=st.integers(0, 100_000)),
            kv_free_tokens=st.integers(0, 100_000),
            free_slots=st.integers(0, 2),
            prefills=st.booleans(),
            local_prefill_tokens=st.integers(0, 10_000),
        ),
        max_size=4,
        unique_by=lambda worker: worker.key,
    ).map(tuple),
)
prompts = st.builds(
    Prompt,
    tokens=st.integers(1, 20_000),
    cached_tokens=st.integers(0, 5_000),
    waited_seconds=st.just(0.0),
    ttft_objective_seconds=st.just(1.0),
    excluded=st.frozensets(st.sampled_from(["p0", "d0", "d1"])),
)


@settings(deadline=None, max_examples=60)
@given(prompts, fleets, st.sampled_from(Baseline))
def test_a_prompt_only_goes_where_it_can_and_is_held_only_where_it_cannot(
    prompt: Prompt, fleet: Fleet, name: Baseline
) -> None:
    route = baseline(name).route(prompt, fleet)
    prefills = {worker.key: worker for worker in fleet.prefill if worker.key not in prompt.excluded}
    decodes = {
        worker.key: worker for worker in fleet.decode if worker.key not in prompt.excluded and has_room(prompt, worker)
    }
    if isinstance(route, Pair):
        assert prefills[route.prefill].revision == decodes[route.decode].revision
    elif isinstance(route, Local):
        assert decodes[route.decode].prefills
        assert sum(route.chunks_tokens) == prompt.tokens
    else:
        revisions = {worker.revision for worker in prefills.values()}
        assert not any(worker.prefills or worker.revision in revisions for worker in decodes.values())


def test_round_robin_takes_turns_whatever_the_load() -> None:
    fleet = Fleet(
        (prefill("p0", ahead_seconds=9.0), prefill("p1"), prefill("p2")),
        (decode("d0"), decode("d1", batch=DecodeBatch(99, 99_000))),
    )
    policy = RoundRobin()
    routes = [policy.route(PROMPT, fleet) for _ in range(12)]
    pairs = [route for route in routes if isinstance(route, Pair)]
    assert Counter(route.prefill for route in pairs) == {"p0": 4, "p1": 4, "p2": 4}
    assert Counter(route.decode for route in pairs) == {"d0": 6, "d1": 6}
    assert [route.prefill for route in pairs[:4]] == ["p0", "p1", "p2", "p0"]


def test_turns_survive_a_worker_that_leaves() -> None:
    policy = RoundRobin()
    whole = Fleet((prefill("p0"), prefill("p1"), prefill("p2")), (decode("d"),))
    part = replace(whole, prefill=(whole.prefill[0], whole.prefill[2]))
    taken = [policy.route(PROMPT, fleet) for fleet in (whole, part, part, whole, whole)]
    assert [route.prefill for route in taken if isinstance(route, Pair)] == ["p0", "p2", "p0", "p1", "p2"]


def test_round_robin_without_a_prefill_pool_takes_turns_on_those_that_prefill() -> None:
    policy = RoundRobin()
    fleet = Fleet((), (decode("d0", prefills=True), decode("d1"), decode("d2", prefills=True, unified=True)))
    routes = [policy.route(PROMPT, fleet) for _ in range(3)]
    assert [route.decode for route in routes if isinstance(route, Local)] == ["d0", "d2", "d0"]
    reasons = [route.reason for route in routes if isinstance(route, Local)]
    assert reasons[:2] == [DeflectReason.NO_PREFILL_WORKER, DeflectReason.UNIFIED]


@settings(deadline=None, max_examples=60)
@given(fleets)
def test_least_loaded_is_least(fleet: Fleet) -> None:
    route = LeastLoaded().route(PROMPT, fleet)
    if not isinstance(route, Pair):
        return
    fitting = [worker for worker in fleet.decode if has_room(PROMPT, worker)]
    usable = [one for one in fleet.prefill if any(other.revision == one.revision for other in fitting)]
    prefills = {worker.key: worker for worker in usable}
    peers = {worker.key: worker for worker in fitting if worker.revision == prefills[route.prefill].revision}
    assert prefills[route.prefill].ahead_seconds == min(worker.ahead_seconds for worker in usable)
    assert peers[route.decode].batch.requests == min(worker.batch.requests for worker in peers.values())


@settings(deadline=None, max_examples=60)
@given(prompts, fleets)
def test_least_ttft_beats_every_pair(prompt: Prompt, fleet: Fleet) -> None:
    route = LeastTTFT().route(prompt, fleet)
    pairs = [
        prefill_path_seconds(prompt, one, other)
        for one in fleet.prefill
        for other in fleet.decode
        if one.revision == other.revision and not {one.key, other.key} & prompt.excluded and has_room(prompt, other)
    ]
    if pairs:
        assert not isinstance(route, Hold)
        assert route.ttft_seconds <= min(pairs) * (1 + 1e-12)


def test_least_ttft_deflects_where_the_queue_is_longer() -> None:
    queued = Fleet((prefill("p", ahead_seconds=1.0),), (decode("d", prefills=True),))
    idle = Fleet((prefill("p"),), (decode("d", prefills=True, local_prefill_tokens=5000),))
    local = LeastTTFT().route(PROMPT, queued)
    assert isinstance(local, Local) and local.reason is DeflectReason.SOONEST
    assert isinstance(LeastTTFT().route(PROMPT, idle), Pair)


def test_the_threshold_looks_at_uncached_tokens_only() -> None:
    fleet = Fleet((prefill("p"),), (decode("busy", prefills=True, batch=DecodeBatch(250, 90_000)),))
    policy = PrefixThreshold(1000)
    short = policy.route(replace(PROMPT, tokens=999, cached_tokens=50_000), fleet)
    assert isinstance(short, Local) and short.reason is DeflectReason.SHORT_PROMPT
    assert isinstance(policy.route(replace(PROMPT, tokens=1000), fleet), Pair)
    assert isinstance(PrefixThreshold(0).route(replace(PROMPT, tokens=1), fleet), Pair)


@pytest.mark.parametrize(
    ("fleet", "prompt", "reason"),
    [
        (Fleet((prefill("p"),), ()), PROMPT, HoldReason.NO_DECODE_WORKER),
        (Fleet((prefill("p"),), (decode("d", free_slots=0),)), PROMPT, HoldReason.DECODE_FULL),
        (Fleet((), (decode("d"),)), PROMPT, HoldReason.NO_PREFILL_WORKER),
        (Fleet((prefill("p"),), (decode("d", revision="s"),)), PROMPT, HoldReason.NO_PAIR),
        (
            Fleet((prefill("p"),), (decode("d"),)),
            replace(PROMPT, excluded=frozenset({"d"})),
            HoldReason.TRIED_ALL,
        ),
    ],
)
def test_a_held_prompt_knows_why(fleet: Fleet, prompt: Prompt, reason: HoldReason) -> None:
    policies: list[RoutingPolicy] = [RoundRobin(), LeastLoaded(), LeastTTFT(), PrefixThreshold(512)]
    assert [policy.route(prompt, fleet) for policy in policies] == [Hold(reason)] * 4


def test_names() -> None:
    assert isinstance(baseline("least-ttft"), LeastTTFT)
    with pytest.raises(ValueError, match="round-robin, least-loaded, least-ttft, prefix-threshold"):
        baseline("fastest")
    with pytest.raises(ValueError, match="threshold_tokens"):
        baseline("prefix-threshold", threshold_tokens=-1)
