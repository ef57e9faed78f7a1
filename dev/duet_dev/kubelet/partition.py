"""A node cut off from the API server on purpose: while a file with its name lies in `ROOT/partitioned`.

Its heartbeat stops and its pods' objects are neither read nor written; their processes live on, as they would.
"""

import asyncio
from pathlib import Path

POLL_SECONDS = 0.2


class Partition:
    def __init__(self, root: Path) -> None:
        self._folder = root / "partitioned"
        self._folder.mkdir(parents=True, exist_ok=True)

    async def over(self, node: str) -> None:
        """Until the node can reach the API server."""
        while (self._folder / node).exists():  # noqa: ASYNC110 (whoever cuts it off is another process)
            await asyncio.sleep(POLL_SECONDS)
