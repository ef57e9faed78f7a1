"""Brings the live settings to the engines of an object that has no gateway, as its gateways do otherwise.

Invariant: level-triggered. Whoever got another generation, became ready again or wasn't told for a while is told anew,
so new, restarted and briefly unreachable engines need no special case; an older generation changes nothing there.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duet_engine.gateway.live_settings import live_settings
from duet_operator.engines import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duet_engine.protocol import Knobs
    from duet_operator.engines import EngineClient
    from duet_operator.pods import Pod

logger = logging.getLogger(__name__)

REPEAT_SECONDS = 60.0
"""An engine may have restarted unseen."""


def knobs_of(duet: Mapping[str, Any]) -> Knobs:
    """What engines must know of a DuetDeployment."""
    return live_settings(duet["spec"], generation=int(duet["metadata"].get("generation", 0))).knobs()


@dataclass(frozen=True, slots=True)
class _Told:
    knobs: Knobs
    ready_since: float | None
    time_seconds: float


class KnobPusher:
    """Pushes to those that lag behind."""

    def __init__(self, engines: EngineClient) -> None:
        self._engines = engines
        self._told: dict[str, _Told] = {}
        """Pod uid -> what it took last."""

    async def push(self, pods: Sequence[Pod], knobs: Knobs, *, now_seconds: float) -> None:
        """To each engine that isn't known to have them."""
        due = [pod for pod in pods if self._is_due(pod, knobs, now_seconds)]
        await asyncio.gather(*(self._push(pod, knobs, now_seconds) for pod in due))
        self._told = {uid: told for uid, told in self._told.items() if now_seconds - told.time_seconds < REPEAT_SECONDS}

    def _is_due(self, pod: Pod, knobs: Knobs, now_seconds: float) -> bool:
        told = self._told.get(pod.uid)
        return (
            told is None
            or told.knobs != knobs
            or told.ready_since != pod.ready_changed_seconds
            or now_seconds - told.time_seconds >= REPEAT_SECONDS
        )

    async def _push(self, pod: Pod, knobs: Knobs, now_seconds: float) -> None:
        try:
            await self._engines.set_knobs(pod, knobs)
        except EngineError as error:
            logger.info("knobs of generation %d not taken: %s", knobs.generation, error)
        else:
            self._told[pod.uid] = _Told(knobs, pod.ready_changed_seconds, now_seconds)
