"""A run holds what is in flight, and of what has ended a row of numbers."""

import gc
from collections.abc import Iterator

from tests.support.small_fleets import pairs

from duet_engine.simulator.flight import Flight
from duet_engine.simulator.run import simulate
from duet_engine.simulator.workload import Request


def most_alive(requests: int) -> tuple[int, int]:
    """Flights that existed at once, whoever held them, and requests that were read but hadn't ended."""
    read = alive = ahead = 0

    def coming() -> Iterator[Request]:
        nonlocal read
        for read in range(1, requests + 1):
            yield Request(0.05 * read, 300, 10)

    def look(_: float, ended: int) -> None:
        nonlocal alive, ahead
        alive = max(alive, sum(isinstance(each, Flight) for each in gc.get_objects()))
        ahead = max(ahead, read - ended)

    simulate(pairs(), coming(), progress=look)
    return alive, ahead


def test_memory_grows_with_the_requests_in_flight_and_not_with_those_that_ended() -> None:
    alive, ahead = most_alive(2400)
    assert 0 < ahead < 100, "requests are read as they are needed"
    assert 0 < alive < 100, "and forgotten when they have ended"
