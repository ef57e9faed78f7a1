"""A gateway that doesn't keep up says so."""

from __future__ import annotations

import asyncio
import time

from duet_engine.gateway.loop_lag import SATURATED_SECONDS, TICKS_REMEMBERED, LoopLag


async def test_a_loop_that_is_held_up_is_saturated() -> None:
    lag = LoopLag()
    assert not lag.saturated, "nothing was measured"
    lag.start()
    for _ in range(TICKS_REMEMBERED + 2):
        await asyncio.sleep(0.001)
        time.sleep(2 * SATURATED_SECONDS)  # noqa: ASYNC251 - what is measured
    assert lag.saturated and lag.p99_seconds() > SATURATED_SECONDS
    lag.stop()
