"""How a pytest run went, as its last line tells it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

COUNT = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed)")
LAST_LINE = re.compile(rf"({COUNT.pattern}s?|\d+ deselected|no tests ran)\b.* in \d+\.\d+s")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Numbers of tests."""

    passed: int = 0
    failed: int = 0
    error: int = 0
    skipped: int = 0
    xfailed: int = 0

    @classmethod
    def read(cls, lines: Iterable[str]) -> Self | None:
        """None where the run ended before it could tell."""
        last = next((line for line in reversed(list(lines)) if LAST_LINE.search(line)), None)
        return cls(**{kind: int(count) for count, kind in COUNT.findall(last)}) if last else None

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        """Passed and failed in any case, the others where there are some."""
        others = ((self.error, "in error"), (self.skipped, "skipped"), (self.xfailed, "failed as expected"))
        told = [f"{count} {what}" for count, what in others if count]
        return ", ".join([f"{self.passed} passed", f"{self.failed} failed", *told])
