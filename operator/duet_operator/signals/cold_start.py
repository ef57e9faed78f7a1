"""How long a new pod takes until it's ready, measured from an object's own pods.

Invariant: pure values; each pod counts once, and only one that was seen before it first became ready counts at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duet_operator.pods import Pod

MOST_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class ColdStarts:
    """The last cold starts of a pool."""

    seconds: tuple[float, ...] = ()
    starting: frozenset[str] = field(default=frozenset())
    """Uids of pods that were last seen on their way to ready."""

    def observe(self, pods: Iterable[Pod]) -> ColdStarts:
        """With the pods that have become ready since."""
        pods = tuple(pods)
        durations = [
            pod.ready_changed_seconds - pod.created_seconds
            for pod in pods
            if pod.ready and pod.uid in self.starting and pod.ready_changed_seconds is not None
        ]
        return ColdStarts(
            (*self.seconds, *durations)[-MOST_SAMPLES:],
            frozenset(pod.uid for pod in pods if pod.alive and not pod.has_been_ready),
        )

    @property
    def p90_seconds(self) -> float | None:
        """The time that nine of ten cold starts don't exceed, None before the first."""
        if not self.seconds:
            return None
        return sorted(self.seconds)[ceil(0.9 * len(self.seconds)) - 1]
