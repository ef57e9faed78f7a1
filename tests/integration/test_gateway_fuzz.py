"""A small seeded part of `make fuzz-gateway`: hostile requests neither crash nor hang it, nor get to a worker."""

from pathlib import Path

import aiohttp
from tests.bench.fuzz_gateway import started
from tests.support.fleet import fleet
from tests.support.strict_engine import StrictEngine

REQUESTS = 600


async def test_hostile_requests_are_answered_and_go_nowhere(tmp_path: Path) -> None:
    engine = StrictEngine()
    with fleet(tmp_path) as processes:
        async with aiohttp.ClientSession() as session:
            fuzzed = await started(processes, engine, session, tmp_path)
            seen = await fuzzed.round(range(REQUESTS), concurrent=128)
            fuzzed.verify(seen)
            assert seen.total == REQUESTS
            assert seen.statuses["200"] > 100 and seen.statuses["400"] > 100
            assert engine.served["/generate"] > 20, "good requests among them are served"
    engine.close()
