"""Whether a status is worth a write, and the patch that writes it.

Invariant: a pass that finds nothing new writes nothing. Conditions, counts and the decision's reason are written at
once; measured numbers when they are a minute old, or sooner when one changed by more than a tenth, and never more of
them in a second over all objects than the budget has: each write wakes everybody who watches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from duet_operator.api.v1alpha1 import DuetStatus, PoolStatus

REFRESH_SECONDS = 60.0
SHORTEST_REFRESH_SHARE = 0.25
"""Numbers of light traffic jump by a tenth in every pass; a write waits for at least this share of the refresh."""
GREAT_CHANGE = 0.1


class Worth(IntEnum):
    """Why a status would be written."""

    NOTHING = 0
    CHANGED = 1
    """A measured number changed by more than a tenth."""
    DUE = 2
    """The measured numbers have had their time."""
    AT_ONCE = 3
    """A state changed."""


class WriteBudget:
    """How many statuses may be written in a second; what must be told at once is, and leaves less for the others."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(per_second, 2.0)
        self._left = self._most
        self._then: float | None = None

    def allows(self, worth: Worth, *, now_seconds: float) -> bool:
        """Whether one of this worth may be written now. What could wait longer leaves half for what couldn't."""
        passed = 0.0 if self._then is None else max(now_seconds - self._then, 0.0)
        self._then = now_seconds
        self._left = min(self._left + passed * self._per_second, self._most)
        kept = self._most / 2 if worth is Worth.CHANGED else 0.0
        allowed = worth is Worth.AT_ONCE or (worth is not Worth.NOTHING and self._left >= 1.0 + kept)
        if allowed:
            self._left = max(self._left - 1.0, -self._most)
        return allowed


def worth_of(old: DuetStatus, new: DuetStatus, *, now: datetime, refresh_seconds: float = REFRESH_SECONDS) -> Worth:
    """Whether and why `new` should replace `old`, which is what the object has."""
    if _at_once(old) != _at_once(new):
        return Worth.AT_ONCE
    if _timeless(old) == _timeless(new):
        return Worth.NOTHING
    age_seconds = (now - old.decision.time).total_seconds() if old.decision else refresh_seconds
    if age_seconds >= refresh_seconds:
        return Worth.DUE
    soon = age_seconds >= SHORTEST_REFRESH_SHARE * refresh_seconds and _changed_much(old.to_dict(), new.to_dict())
    return Worth.CHANGED if soon else Worth.NOTHING


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch that makes `new` of `old`; empty where they are equal."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_patch(before, value)
            if inner:
                patch[key] = inner
        elif value != before:
            patch[key] = value
    return patch


def _timeless(status: DuetStatus) -> DuetStatus:
    """Without when it was decided, which alone is no news."""
    decision = status.decision and status.decision.model_copy(update={"time": None})
    return status.model_copy(update={"decision": decision})


def _at_once(status: DuetStatus) -> tuple[object, ...]:
    """What must never be out of date."""
    decision = status.decision
    return (
        status.observed_generation,
        status.resolved,
        tuple(
            (condition.type, condition.status, condition.reason, condition.observed_generation)
            for condition in status.conditions
        ),
        _counts(status.prefill),
        _counts(status.decode),
        decision and (decision.reason, decision.limited_by),
        status.history,
    )


def _counts(pool: PoolStatus | None) -> tuple[int | None, ...] | None:
    """A pool's counts but the recommendation, which follows noisy demand."""
    if pool is None:
        return None
    return (pool.replicas, pool.ready, pool.starting, pool.draining, pool.replacing, pool.desired)


def _changed_much(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a measured number appeared, vanished or changed by more than a tenth."""
    before, after = dict(_numbers(old)), dict(_numbers(new))
    return before.keys() != after.keys() or any(
        abs(value - before[path]) > GREAT_CHANGE * max(abs(value), abs(before[path])) for path, value in after.items()
    )


def _numbers(status: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for part in ("slo", "traffic", "prefill", "decode"):
        for name, value in (status.get(part) or {}).items():
            yield f"{part}.{name}", value
