"""What has been asked for lately, by class: the loads that a plan is made for, from counters that only grow.

Invariant: pure; time comes in with each call. Whoever waits longer than planned counts as asked for again, over the
time in which a backlog should be gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from duet_engine.policy.pools_plan import ClassLoad

WINDOW_SECONDS = 10.0
CLEARING_SECONDS = 10.0
USUAL_OUTPUT_TOKENS = 256.0
"""Until the first answer has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Of one class since the start."""

    arrivals: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completed: int = 0
    output_tokens: float = 0.0
    """Of those that completed."""


_NONE = Counted()


class DemandWindow:
    """The counters of the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Mapping[str, Counted]]] = deque()

    def add(self, now: float, counted: Mapping[str, Counted]) -> None:
        """What the counters say now."""
        self._samples.append((now, counted))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def loads(self, *, weight_of: Callable[[str], int], waiting: Mapping[str, int]) -> list[ClassLoad]:
        """Classes with demand; empty until there are two samples."""
        if len(self._samples) < 2:
            return []
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        found = []
        for name, counted in last.items():
            before = first.get(name, _NONE)
            arrivals = counted.arrivals - before.arrivals
            rate = arrivals / (ended - began) + waiting.get(name, 0) / CLEARING_SECONDS
            if rate <= 0 or not counted.arrivals:
                continue
            new_tokens = counted.prompt_tokens - before.prompt_tokens
            mean_tokens = new_tokens / arrivals if arrivals else counted.prompt_tokens / counted.arrivals
            uncached = 1.0 - min(counted.cached_tokens / max(counted.prompt_tokens, 1), 1.0)
            outputs = counted.output_tokens / counted.completed if counted.completed else USUAL_OUTPUT_TOKENS
            found.append(
                ClassLoad(
                    name=name,
                    arrivals_per_second=rate,
                    prompt_tokens=max(mean_tokens * uncached, 1.0),
                    output_tokens=max(outputs, 1.0),
                    weight=weight_of(name),
                )
            )
        return found
