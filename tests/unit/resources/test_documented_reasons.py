"""Every reason that a status can name stands in the documentation, and no other."""

import re
from pathlib import Path
from typing import get_args

from duet_operator.api.v1alpha1 import ConditionType
from duet_operator.planner.reasons import Reason
from duet_operator.resources.conditions import ConditionReason

PAGE = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")
DECISIONS, CONDITIONS = PAGE.split("## Reasons of a decision")[1].split("## Conditions")


def words(column: int, table: str) -> set[str]:
    """The code words in one column of a table."""
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    return {word for row in rows for word in re.findall(r"`(\w+)`", row[column])}


def test_reasons_of_decisions() -> None:
    assert words(1, DECISIONS) == {reason.value for reason in Reason}


def test_conditions_and_their_reasons() -> None:
    assert words(1, CONDITIONS) == set(get_args(ConditionType))
    known = {reason.value for reason in ConditionReason} | {reason.value for reason in Reason}
    told = words(2, CONDITIONS)
    assert {reason.value for reason in ConditionReason} <= told <= known
