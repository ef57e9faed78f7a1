"""Which tests run together in one pytest process, a lane.

Invariant: a test's lane follows from its markers, its fixtures and its folder alone, and there is exactly one. A lane
starts every server that it needs and shares no port, path or cache with another: lanes run in any order, side by side
or alone.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from duet_dev.paths import REPOSITORY


@dataclass(frozen=True, slots=True)
class Lane:
    """Tests that share servers: those with this marker or fixture, where there is none all in the folder."""

    name: str
    holds: str
    folder: str
    """Where all of them lie, so that nothing else is read."""
    marker: str = ""
    fixture: str = ""
    alone: bool = False
    """What it starts takes every core, so that nothing else would keep its time beside it."""

    def takes(self, *, markers: Collection[str], fixtures: Collection[str], path: Path) -> bool:
        if self.marker or self.fixture:
            return self.marker in markers or self.fixture in fixtures
        return self.looks_at(path)

    def looks_at(self, path: Path) -> bool:
        return path.is_relative_to(REPOSITORY / self.folder)


ENGINES = Lane("engines", "real SGLang servers", "tests/engine", marker="engine", alone=True)
SERVING = Lane("serving", "Duet on the local cluster", "tests/e2e", fixture="operator_release")
CLUSTER = Lane("cluster", "the local cluster itself, and the demo", "tests/e2e", marker="cluster")
API_SERVER = Lane("apiserver", "the real API server", "tests/integration", marker="apiserver")
PROCESSES = Lane("processes", "gateways and engines on loopback", "tests/integration")
REST = Lane("rest", "everything else", "tests")

LANES = (ENGINES, SERVING, CLUSTER, API_SERVER, PROCESSES, REST)
"""In the order in which they start: the longest first, so that none is left over at the end."""


def lane_of(*, markers: Collection[str], fixtures: Collection[str], path: Path) -> Lane:
    """The first lane that takes a test, else the rest."""
    return next((lane for lane in LANES if lane.takes(markers=markers, fixtures=fixtures, path=path)), REST)
