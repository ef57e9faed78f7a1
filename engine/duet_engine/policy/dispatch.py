"""Which waiting prompts leave now, and where to: one pass over the queue of a gateway.

Invariant: order is kept. A prompt that must wait reserves its place on the worker it waits for, so no later prompt
takes that place: a turn at a prefill worker, or all that comes free on the decode worker that lacks least for it. One
that no worker is there for, as for every later prompt, ends the pass. So no prompt starves, and a large one holds up
no more than one worker.

Prompts wait here instead of in engines: a worker is open while the work ahead of the next prompt is within a window,
and every prompt's route is decided anew in each pass until it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

from duet_engine.policy.board import Board, Memory
from duet_engine.policy.deflect import DeflectionRule
from duet_engine.policy.fleet import DecodeWorker, Fleet, Prompt
from duet_engine.policy.routes import DeflectReason as DeflectReason
from duet_engine.policy.routes import Hold as Hold
from duet_engine.policy.routes import HoldReason as HoldReason
from duet_engine.policy.routes import Local as Local
from duet_engine.policy.routes import Pair as Pair
from duet_engine.policy.routes import Route as Route
from duet_engine.policy.steadiness import HYSTERESIS, Preferences

LOOK_AHEAD_PROMPTS = 32
"""Bounds the work of one pass; later prompts are seen once earlier ones have left."""


class Dispatch:
    """One gateway's: what it prefers, what it does already, and what it has worked out of the views it was shown."""

    def __init__(self, name: str = "") -> None:
        """With a name it has preferences of its own, for where several decide about the same workers."""
        self._preferences = Preferences(name)
        self._memory = Memory()
        self._deflecting = False
        self._workers: frozenset[str] = frozenset()
        self._members: object = None

    def __call__(
        self,
        waiting: Sequence[Prompt],
        fleet: Fleet,
        rule: DeflectionRule,
        *,
        window_seconds: float,
        solo_first: bool = False,
    ) -> list[Route]:
        """A route for each prompt from the head of the queue on; the list ends where the pass ended.

        `solo_first`: decode workers that compute no prompt are taken before those that do, as Gate-and-Route's router
        does.
        """
        self._forget(fleet)
        board = self._board(fleet, rule, window_seconds, solo_first=solo_first)
        routes: list[Route] = []
        seen = waiting[:LOOK_AHEAD_PROMPTS]
        for index, prompt in enumerate(seen, start=1):
            if not board.open():
                break
            route, ends_pass = board.place(prompt, last=index == len(seen))
            routes.append(route)
            if ends_pass:
                break
        if routes:
            self._deflecting = board.endangered
        return routes

    def hold_reason(self, prompt: Prompt, fleet: Fleet, rule: DeflectionRule) -> HoldReason:
        """Why a prompt that a pass didn't send away waits, for logs and error messages."""
        route, _ = self._board(fleet, rule, 0.0).place(prompt)
        return route.reason if isinstance(route, Hold) else HoldReason.PREFILL_BUSY

    def prepare(self, view: DecodeWorker, rule: DeflectionRule) -> None:
        """A worker shows a new view: what decisions will ask of it is worked out now."""
        self._memory.prepare(view, rule)

    def _board(self, fleet: Fleet, rule: DeflectionRule, window_seconds: float, *, solo_first: bool = False) -> Board:
        return Board(
            fleet,
            rule,
            window_seconds=window_seconds,
            memory=self._memory,
            preferences=self._preferences,
            threshold_factor=self._preferences.threshold * (HYSTERESIS if self._deflecting else 1.0),
            solo_first=solo_first,
        )

    def _forget(self, fleet: Fleet) -> None:
        """What is kept of workers that have left."""
        if fleet.members is not None and fleet.members is self._members:
            return
        self._members = fleet.members
        keys = frozenset([worker.key for worker in fleet.prefill] + [worker.key for worker in fleet.decode])
        if keys != self._workers:
            self._workers = keys
            self._memory.keep(keys)
            self._preferences.keep(keys)


def dispatch(
    waiting: Sequence[Prompt], fleet: Fleet, rule: DeflectionRule, *, window_seconds: float
) -> list[Pair | Local | Hold]:
    """One pass that nothing is remembered of."""
    return Dispatch()(waiting, fleet, rule, window_seconds=window_seconds)


def hold_reason(prompt: Prompt, fleet: Fleet, rule: DeflectionRule) -> HoldReason:
    """Why a prompt waits, with nothing remembered."""
    return Dispatch().hold_reason(prompt, fleet, rule)
