"""Bounded waits for what happens by itself."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from duet_dev.kubeapi import UNAVAILABLE

POLL_SECONDS = 0.2

T = TypeVar("T")


async def until(what: str, attempt: Callable[[], Awaitable[T | None]], *, seconds: float) -> T:
    """What `attempt` returns once it's neither None nor False; an API server that is busy is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        trouble = ""
        try:
            if result := await attempt():
                return result
        except UNAVAILABLE as error:
            trouble = f" ({error})"
        assert time.monotonic() < deadline, f"within {seconds:g} s not so: {what}{trouble}"
        await asyncio.sleep(POLL_SECONDS)
