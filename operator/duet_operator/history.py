"""What an object's planner remembers, as the ConfigMap that outlives the operator.

Invariant: reading never fails: what can't be read is forgotten, and said. The document stays far under 200 KB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from duet_engine.perf.replica import replica_from_document
from duet_engine.protocol import Role, WorkerProfile
from duet_operator.planner import memory
from duet_operator.planner.mode import Mode
from duet_operator.planner.types import PlannerMemory
from duet_operator.room import Room
from duet_operator.signals.cold_start import MOST_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping

POOL_ROLES = (Role.PREFILL, Role.DECODE)
LONGEST_WHY = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything worth keeping over a restart."""

    planner: PlannerMemory = field(default_factory=PlannerMemory)
    cold_start_seconds: Mapping[Role, tuple[float, ...]] = field(default_factory=dict)
    profiles: Mapping[Role, WorkerProfile] = field(default_factory=dict)
    rooms: Mapping[Role, Room] = field(default_factory=dict)
    held_by: Mode | None = None
    """The mode that held the counts, None where that was Auto."""


def to_document(history: History) -> dict[str, Any]:
    """The history as plain JSON values."""
    return {
        "planner": memory.to_document(history.planner),
        "coldStartSeconds": {
            role.value: [round(value, 1) for value in values] for role, values in history.cold_start_seconds.items()
        },
        "profiles": {role.value: profile.model_dump(mode="json") for role, profile in history.profiles.items()},
        "rooms": {role.value: _room_document(room) for role, room in history.rooms.items()},
        "heldBy": history.held_by,
    }


def from_document(document: object) -> tuple[History, tuple[str, ...]]:
    """The history in a document, and what of it had to be forgotten."""
    if not isinstance(document, dict):
        return History(), (f"history: expected an object, found {type(document).__name__}; starting afresh",)
    problems: list[str] = []
    planner, problem = memory.from_document(document.get("planner", {}))
    if problem is not None:
        problems.append(problem)
    history = History(
        planner=planner,
        cold_start_seconds=_cold_starts(document.get("coldStartSeconds"), problems),
        profiles=_profiles(document.get("profiles"), problems),
        rooms=_rooms(document.get("rooms"), problems),
        held_by=_held_by(document.get("heldBy"), problems),
    )
    return history, tuple(problems)


def _held_by(value: object, problems: list[str]) -> Mode | None:
    known = next((mode for mode in get_args(Mode) if mode == value), None)
    if known is None and value is not None:
        problems.append("held by: not a mode; forgetting it")
    return known


def _by_role(value: object, what: str, problems: list[str]) -> dict[Role, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{what}: not an object; forgetting it")
        return {}
    return {role: value[role.value] for role in POOL_ROLES if role.value in value}


def _cold_starts(value: object, problems: list[str]) -> dict[Role, tuple[float, ...]]:
    result: dict[Role, tuple[float, ...]] = {}
    for role, seconds in _by_role(value, "cold starts", problems).items():
        sound = isinstance(seconds, list) and all(
            isinstance(each, int | float) and math.isfinite(each) and each >= 0 for each in seconds
        )
        if sound:
            result[role] = tuple(float(each) for each in seconds)[-MOST_SAMPLES:]
        else:
            problems.append(f"cold starts of {role.value}: not numbers; forgetting them")
    return result


def _profiles(value: object, problems: list[str]) -> dict[Role, WorkerProfile]:
    result: dict[Role, WorkerProfile] = {}
    for role, profile in _by_role(value, "profiles", problems).items():
        try:
            known = WorkerProfile.model_validate(profile)
            replica_from_document(known.replica)
            result[role] = known
        except ValidationError as error:
            problems.append(f"profile of {role.value}: {error.error_count()} bad fields; forgetting it")
        except ValueError as error:
            problems.append(f"profile of {role.value}: {error}; forgetting it")
    return result


def _room_document(room: Room) -> dict[str, Any]:
    return {
        "count": room.count,
        "untilSeconds": round(room.until_seconds),
        "refusals": room.refusals,
        "why": room.why[:LONGEST_WHY],
    }


def _rooms(value: object, problems: list[str]) -> dict[Role, Room]:
    result: dict[Role, Room] = {}
    for role, found in _by_role(value, "rooms", problems).items():
        try:
            count, refusals, until = int(found["count"]), int(found["refusals"]), float(found["untilSeconds"])
            if min(count, refusals) < 0 or not math.isfinite(until):
                raise ValueError("not a number that a room can have")
        except (KeyError, TypeError, ValueError):
            problems.append(f"room of {role.value}: not as it was written; forgetting it")
        else:
            result[role] = Room(count=count, until_seconds=until, refusals=refusals, why=str(found.get("why", "")))
    return result
