"""All that a gateway decides about its queue, in one object: in which order prompts are looked at, and where each goes.

Invariant: the gateway and the simulator run this same code; what differs between them is only how they come to know of
workers. No clock and no I/O: the caller says what time it is and who waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

from duet_engine.policy.class_gate import ClassGate, ClassTurns, Underway
from duet_engine.policy.deflect import DeflectionRule
from duet_engine.policy.dispatch import LOOK_AHEAD_PROMPTS, Dispatch
from duet_engine.policy.estimates import unloaded_ttft_seconds
from duet_engine.policy.fleet import DecodeWorker, Fleet, Prompt
from duet_engine.policy.routes import HoldReason, Route
from duet_engine.policy.turns import Turns, late_from
from duet_engine.slo import Objective

COLD: Mapping[str, int] = MappingProxyType({})
"""Nobody holds anything of a prompt."""
MOST_KNOWN = 100_000
_NOBODY: frozenset[str] = frozenset()


class Waiting:
    """A prompt in a queue, as it was last looked at."""

    __slots__ = ("arrived_at", "class_name", "excluded_until", "late_from", "prompt", "unloaded_ttft_seconds")

    def __init__(
        self,
        *,
        arrived_at: float,
        prompt_tokens: int,
        output_reserve_tokens: int,
        warm: Mapping[str, int] = COLD,
        excluded_until: dict[str, float] | None = None,
        class_name: str = "default",
    ) -> None:
        self.arrived_at = arrived_at
        self.class_name = class_name
        self.excluded_until = {} if excluded_until is None else excluded_until
        """Workers that refused or failed it, by key, and until when they are left alone."""
        self.unloaded_ttft_seconds = 0.0
        """What the best idle workers would take; 0 until it was looked at."""
        self.late_from = math.inf
        """When it becomes too late to leave."""
        self.prompt = Prompt(
            tokens=prompt_tokens,
            waited_seconds=0.0,
            ttft_objective_seconds=math.inf,
            output_reserve_tokens=output_reserve_tokens,
            warm=warm,
        )

    def look(self, objective: Objective, unloaded: Unloaded, now: float, *, window_seconds: float = 0.0) -> Prompt:
        """The prompt as it is now: longer waited, perhaps with workers that it may try again."""
        before = self.prompt
        if not self.unloaded_ttft_seconds:
            self.unloaded_ttft_seconds = unloaded(before.tokens)
        objective_seconds = objective.ttft_objective_seconds(self.unloaded_ttft_seconds)
        self.late_from = late_from(
            arrived_at=self.arrived_at,
            objective_seconds=objective_seconds,
            unloaded_ttft_seconds=self.unloaded_ttft_seconds,
            window_seconds=window_seconds,
        )
        excluded = _NOBODY
        if self.excluded_until:
            excluded = frozenset(key for key, until in self.excluded_until.items() if until > now)
        self.prompt = Prompt(
            tokens=before.tokens,
            waited_seconds=now - self.arrived_at,
            ttft_objective_seconds=objective_seconds,
            output_reserve_tokens=before.output_reserve_tokens,
            excluded=excluded,
            warm=before.warm,
        )
        return self.prompt


class Unloaded:
    """TTFTs on the best idle workers, kept by the prompt's length while the fleet's workers are the same."""

    __slots__ = ("_fleet", "_known")

    def __init__(self) -> None:
        self._fleet = Fleet()
        self._known: dict[int, float] = {}

    def of(self, fleet: Fleet) -> Unloaded:
        """As these workers have it."""
        if fleet.members is None or fleet.members is not self._fleet.members or len(self._known) > MOST_KNOWN:
            self._known = {}
        self._fleet = fleet
        return self

    def __call__(self, prompt_tokens: int) -> float:
        seconds = self._known.get(prompt_tokens)
        if seconds is None:
            seconds = self._known[prompt_tokens] = unloaded_ttft_seconds(prompt_tokens, self._fleet)
        return seconds


AnyWaiting = TypeVar("AnyWaiting", bound=Waiting)


class QueuePolicy:
    """One gateway's. It remembers, so each gateway and each simulated run needs its own."""

    def __init__(self, name: str = "") -> None:
        """With a name it has preferences of its own, for where several decide about the same workers."""
        self._dispatch = Dispatch(name)
        self._turns = Turns()
        self._unloaded = Unloaded()
        self._class_turns = ClassTurns()
        self._gate: ClassGate | None = None
        """The one of the last pass."""

    def __call__(
        self,
        waiting: Iterable[AnyWaiting],
        fleet: Fleet,
        rule: DeflectionRule,
        *,
        window_seconds: float,
        now: float,
        objective_of: Callable[[AnyWaiting], Objective],
        gate: ClassGate | None = None,
        underway: Underway | None = None,
    ) -> list[tuple[AnyWaiting, Route]]:
        """One pass over those who wait, in order of arrival: who was looked at, and what becomes of each.

        A gate puts classes in order, by what of them is under way; off (None) it costs nothing.
        """
        self._gate = gate
        turns = self._turns if gate is None else self._class_turns.through(gate, underway or Underway())
        seen = turns.first(waiting, lambda each: each.late_from < now, most=LOOK_AHEAD_PROMPTS)
        prompts = self.prompts(seen, fleet, window_seconds=window_seconds, now=now, objective_of=objective_of)
        routes = self._dispatch(prompts, fleet, rule, window_seconds=window_seconds, solo_first=gate is not None)
        return list(zip(seen, routes, strict=False))

    def prompts(
        self,
        seen: Iterable[AnyWaiting],
        fleet: Fleet,
        *,
        window_seconds: float,
        now: float,
        objective_of: Callable[[AnyWaiting], Objective],
    ) -> list[Prompt]:
        """Those who wait, as they are now."""
        unloaded = self._unloaded.of(fleet)
        return [each.look(objective_of(each), unloaded, now, window_seconds=window_seconds) for each in seen]

    def prepare(self, view: DecodeWorker, rule: DeflectionRule) -> None:
        """A worker shows a new view: what decisions will ask of it is worked out now."""
        self._dispatch.prepare(view, rule)

    def left(self, waiting: Waiting, now: float) -> None:
        """It went where its route says."""
        late = waiting.late_from < now
        if self._gate is None:
            self._turns.left(late=late)
        else:
            self._class_turns.left(self._gate, waiting.class_name, late=late)

    def hold_reason(self, waiting: Waiting, fleet: Fleet, rule: DeflectionRule) -> HoldReason:
        """Why a prompt that a pass didn't send away waits, for logs and error messages."""
        return self._dispatch.hold_reason(waiting.prompt, fleet, rule)
