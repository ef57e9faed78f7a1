"""The prefix index against a plain model of it: who holds how much of a prompt's beginning."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from duet_engine.policy.prefix_index import PrefixIndex, text_blocks, warm_tokens

prompts = st.lists(st.integers(0, 2), min_size=0, max_size=6).map(
    lambda parts: b"".join(bytes([65 + part]) * 4 for part in parts)
)
workers = st.sampled_from(["a", "b", "c"])


def chain(prompt: bytes) -> list[int]:
    return text_blocks(prompt, block_bytes=4)


class Roomy(RuleBasedStateMachine):
    """With room for everything the match is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(most_blocks=100_000)
        self.sent: dict[str, list[bytes]] = {}

    @rule(worker=workers, prompt=prompts)
    def send(self, worker: str, prompt: bytes) -> None:
        self.index.add(worker, chain(prompt))
        self.sent.setdefault(worker, []).append(prompt)

    @rule(worker=workers)
    def lose(self, worker: str) -> None:
        self.index.forget(worker)
        self.sent.pop(worker, None)

    @rule(prompt=prompts)
    def ask(self, prompt: bytes) -> None:
        expected: dict[str, int] = {}
        for worker, sent in self.sent.items():
            shared = max(self.shared(prompt, other) for other in sent)
            if shared:
                expected[worker] = shared
        assert self.index.match(chain(prompt)) == expected

    @staticmethod
    def shared(one: bytes, other: bytes) -> int:
        count = 0
        while one[4 * count : 4 * count + 4] and one[: 4 * count + 4] == other[: 4 * count + 4]:
            count += 1
        return count


TestRoomy = Roomy.TestCase
TestRoomy.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


class Bounded(RuleBasedStateMachine):
    """Without room it forgets, but never keeps more than it may, nor says more than is true."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(most_blocks=10)
        self.sent: dict[str, set[int]] = {}

    @rule(worker=workers, prompt=prompts)
    def send(self, worker: str, prompt: bytes) -> None:
        self.index.add(worker, chain(prompt))
        self.sent.setdefault(worker, set()).update(chain(prompt))

    @rule(prompt=prompts)
    def ask(self, prompt: bytes) -> None:
        for worker, count in self.index.match(chain(prompt)).items():
            assert 0 < count <= len(chain(prompt))
            assert set(chain(prompt)[:count]) <= self.sent[worker]

    @invariant()
    def bounded(self) -> None:
        assert len(self.index) <= 10


TestBounded = Bounded.TestCase
TestBounded.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_what_was_used_lately_outlives_what_was_not() -> None:
    index = PrefixIndex(most_blocks=8)
    index.add("a", [1, 2])
    for block in range(10, 18):
        index.add("a", [1, 2])
        index.add("b", [block])
    assert index.match([1, 2]) == {"a": 2}
    assert index.match([10]) == {}


def test_what_a_cache_has_no_room_for_any_more_is_given_up() -> None:
    index = PrefixIndex()
    index.add("a", [1, 2], room_blocks=8)
    for block in range(10, 40):
        index.add("a", [block], room_blocks=8)
        index.add("b", [block], room_blocks=1000)
    assert index.match([1, 2]) == {}
    assert index.match([39]) == {"a": 1, "b": 1}
    assert index.match([10]) == {"b": 1}
    held = sum("a" in index.match([block]) for block in range(10, 40))
    assert 5 <= held <= 8


def test_what_is_used_again_stays_whole() -> None:
    index = PrefixIndex()
    for block in range(10, 100):
        index.add("a", [1, 2, block], room_blocks=8)
        assert index.match([1, 2, block]) == {"a": 3}
    assert index.match([1, 2, 10]) == {"a": 2}


def test_bits_that_were_given_up_are_used_again_by_nobody_who_could_be_taken_for_another() -> None:
    index = PrefixIndex(most_blocks=12)
    for round_ in range(200):
        index.add("a", [round_], room_blocks=4)
        index.add("b", [1000 + round_], room_blocks=4)
        assert index.match([round_]) == {"a": 1} and index.match([1000 + round_]) == {"b": 1}
        assert all(set(index.match([each])) <= {"a"} for each in range(round_))
    assert index._highest.bit_length() < 40, "else every look-up would cost more each time"


def test_equal_blocks_behind_different_beginnings_differ() -> None:
    index = PrefixIndex()
    index.add("a", text_blocks(b"x" * 512 + b"y" * 512))
    assert index.match(text_blocks(b"y" * 512)) == {}
    assert index.match(text_blocks(b"x" * 1023)) == {"a": 1}, "only whole blocks count"


def test_a_new_worker_inherits_nothing_from_one_that_left() -> None:
    index = PrefixIndex()
    index.add("old", [1, 2, 3])
    index.forget("old")
    index.forget("old")
    index.add("new", [1])
    assert index.match([1, 2, 3]) == {"new": 1}


@given(st.integers(1, 50), st.integers(1, 10_000))
def test_tokens_follow_blocks(blocks: int, prompt_tokens: int) -> None:
    warm = warm_tokens({"a": blocks, "b": 1}, blocks=blocks, prompt_tokens=prompt_tokens)
    assert warm["a"] == prompt_tokens
    assert warm["b"] == prompt_tokens // blocks
    nothing: dict[str, Any] = warm_tokens({}, blocks=0, prompt_tokens=prompt_tokens)
    assert nothing == {}


def test_an_index_needs_room() -> None:
    with pytest.raises(ValueError, match="most_blocks: must be at least 2"):
        PrefixIndex(most_blocks=1)
