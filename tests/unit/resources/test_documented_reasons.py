"""Every reason that a status can name stands in the documentation, and no other."""

import re
from pathlib import Path
from typing import get_args

from duet_operator.api.v1alpha1 import ConditionType
from duet_operator.planner.reasons import ActionReason, Reason
from duet_operator.resources.conditions import ConditionReason

DOCS = Path(__file__).parents[3] / "docs"
DECISIONS = (DOCS / "scaling.md").read_text(encoding="utf-8").split("## Reasons of a decision")[1]
CONDITIONS, REST = (DOCS / "conditions.md").read_text(encoding="utf-8").split("## Waiting for an object")


def words(column: int, table: str) -> set[str]:
    """The code words in one column of a table."""
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    return {word for row in rows for word in re.findall(r"`(\w+)`", row[column])}


def test_reasons_of_decisions() -> None:
    assert words(1, DECISIONS) == {reason.value for reason in (*Reason, *ActionReason)}


def test_conditions_and_their_reasons() -> None:
    assert words(1, CONDITIONS) == set(get_args(ConditionType))
    known = {reason.value for reason in ConditionReason} | {reason.value for reason in Reason}
    told = words(2, CONDITIONS)
    assert {reason.value for reason in ConditionReason} <= told <= known


def test_every_condition_has_its_meaning_and_what_to_do() -> None:
    rows = [line.strip("|").split("|") for line in CONDITIONS.splitlines() if line.startswith("| `") or "| |" in line]
    assert rows
    assert [row for row in rows if len(row) != 4 or not (row[2].strip() and row[3].strip())] == []


def test_the_health_check_of_argo_cd_names_conditions_that_there_are() -> None:
    snippet = re.search(r"```yaml\n(.*?)```", REST, re.DOTALL)
    assert snippet is not None
    named = set(re.findall(r'find\("(\w+)"\)', snippet[1]))
    assert named and named <= set(get_args(ConditionType))
