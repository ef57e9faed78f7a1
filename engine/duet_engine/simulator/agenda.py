"""What happens when: the virtual clock.

Invariant: time never goes back, and what is due at the same moment happens in the order in which it was planned.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Agenda:
    """Planned actions by moment. An action whose reason has gone must notice it itself."""

    __slots__ = ("_heap", "_planned", "happened", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._planned = 0

    def at(self, moment: float, action: Callable[[Any], None], argument: object = None) -> None:
        """Plan `action(argument)`; a moment that has passed means now."""
        self._planned += 1
        heappush(self._heap, (moment if moment > self.now else self.now, self._planned, action, argument))

    def before(self, moment: float, watch: Callable[[], None] | None) -> None:
        """Let everything happen that is due before a moment, and let somebody watch; then it is that moment."""
        heap = self._heap
        while heap and heap[0][0] < moment:
            self.now, _, action, argument = heappop(heap)
            self.happened += 1
            action(argument)
            if watch is not None:
                watch()
        if moment > self.now:
            self.now = moment

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, action, argument = heappop(self._heap)
        self.happened += 1
        action(argument)
