"""From single probe results to verdicts: a container is well or unwell after enough equal results in a row."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from duet_dev.kubeapi import JsonObject
from duet_dev.kubelet.actions import ActionFailed


@dataclass(slots=True)
class Streak:
    """Counts equal results in a row against the thresholds of a probe."""

    success_threshold: int
    failure_threshold: int
    last: bool | None = None
    length: int = 0

    def verdict(self, success: bool) -> bool | None:
        """The verdict after this result, None while it takes more of its kind."""
        self.length = self.length + 1 if success == self.last else 1
        self.last = success
        needed = self.success_threshold if success else self.failure_threshold
        return success if self.length >= needed else None


@dataclass(frozen=True, slots=True)
class Verdict:
    success: bool
    message: str


async def verdicts(probe: JsonObject, check: Callable[[float], Awaitable[None]]) -> AsyncIterator[Verdict]:
    """Probe for ever; every result that completes or continues a full streak is a verdict."""
    streak = Streak(probe.get("successThreshold", 1), probe.get("failureThreshold", 3))
    await asyncio.sleep(probe.get("initialDelaySeconds", 0))
    while True:
        message = ""
        try:
            await check(probe.get("timeoutSeconds", 1))
        except ActionFailed as failure:
            message = str(failure)
        verdict = streak.verdict(not message)
        if verdict is not None:
            yield Verdict(verdict, message)
        await asyncio.sleep(probe.get("periodSeconds", 10))
