"""The one definition of attainment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_engine.slo import Objective, Outcome, Verdict, attainment, judge

OBJECTIVE = Objective(ttft_seconds=0.8, itl_seconds=0.05)


def outcome(
    *,
    succeeded: bool = True,
    ttft_seconds: float = 0.5,
    output_tokens: int = 101,
    tpot_seconds: float = 0.04,
    streamed: bool = True,
    gaps_over_objective: int = 0,
    unloaded_ttft_seconds: float = 0.0,
) -> Outcome:
    return Outcome(
        succeeded=succeeded,
        ttft_seconds=ttft_seconds,
        output_tokens=output_tokens,
        decode_seconds=tpot_seconds * (output_tokens - 1),
        streamed=streamed,
        gaps_over_objective=gaps_over_objective,
        unloaded_ttft_seconds=unloaded_ttft_seconds,
    )


@pytest.mark.parametrize(
    ("seen", "ttft_met", "itl_met"),
    [
        pytest.param(outcome(), True, True, id="both within"),
        pytest.param(outcome(ttft_seconds=0.8), True, True, id="exactly at the objective"),
        pytest.param(outcome(ttft_seconds=0.81), False, True, id="first token late"),
        pytest.param(outcome(tpot_seconds=0.051), True, False, id="mean gap over"),
        pytest.param(outcome(gaps_over_objective=1), True, True, id="one long gap is tolerated"),
        pytest.param(outcome(gaps_over_objective=2), True, False, id="two of a hundred are not"),
        pytest.param(outcome(output_tokens=301, gaps_over_objective=3), True, True, id="1 % of many gaps"),
        pytest.param(outcome(output_tokens=301, gaps_over_objective=4), True, False, id="over 1 % of many gaps"),
        pytest.param(outcome(streamed=False, gaps_over_objective=9), True, True, id="not streamed: no gaps to judge"),
        pytest.param(outcome(output_tokens=1, tpot_seconds=9.0), True, True, id="a single token has no gap"),
        pytest.param(outcome(succeeded=False), False, False, id="failed meets nothing"),
    ],
)
def test_verdict(seen: Outcome, ttft_met: bool, itl_met: bool) -> None:
    assert judge(seen, OBJECTIVE) == Verdict(ttft_met=ttft_met, itl_met=itl_met)


def test_a_long_prompt_gets_a_share_of_its_unloaded_ttft() -> None:
    relative = Objective(ttft_seconds=0.8, itl_seconds=0.05, ttft_unloaded_ratio=2.0)
    long_prompt = outcome(ttft_seconds=1.9, unloaded_ttft_seconds=1.0)
    assert judge(long_prompt, relative).ttft_met
    assert not judge(long_prompt, OBJECTIVE).ttft_met
    assert relative.ttft_objective_seconds(0.1) == 0.8, "short prompts keep the absolute objective"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=50))
def test_attainment_is_the_share_that_met_both(pairs: list[tuple[bool, bool]]) -> None:
    verdicts = [Verdict(ttft_met=ttft, itl_met=itl) for ttft, itl in pairs]
    share = attainment(verdicts)
    if not pairs:
        assert share is None
    else:
        assert share == sum(ttft and itl for ttft, itl in pairs) / len(pairs)
