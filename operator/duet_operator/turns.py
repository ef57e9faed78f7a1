"""How many objects are worked on at once.

Invariant: as many as there are places begin at a time, and none keeps the others out for longer than
`LONGEST_TURN_SECONDS`: a pass that waits for a slow gateway, engine or API server goes on without its place.
So the loop is never flooded by work that becomes ready in one moment, and nobody's silence holds up anybody else.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONGEST_TURN_SECONDS = 0.05


class Turns:
    """Places that are handed on."""

    def __init__(self, places: int) -> None:
        self._free = asyncio.Semaphore(places)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A place while the context lasts, but not for long."""
        await self._free.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._free.release()

        late = asyncio.get_running_loop().call_later(LONGEST_TURN_SECONDS, give_back)
        try:
            yield
        finally:
            late.cancel()
            give_back()
