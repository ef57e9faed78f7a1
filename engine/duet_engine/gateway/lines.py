"""Lines of an endless HTTP answer, without a limit that a large Kubernetes object would pass."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

LONGEST_LINE_BYTES = 16 * 2**20


async def lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Each complete non-empty line, without its end.

    Raises:
        ValueError: a line longer than 16 MiB.
    """
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line
        if len(rest) > LONGEST_LINE_BYTES:
            raise ValueError(f"line of more than {LONGEST_LINE_BYTES} bytes")
