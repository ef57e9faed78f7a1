"""Which tests run together in one pytest process, a lane.

Invariant: a test's lane follows from its markers and fixtures alone, and there is exactly one. A lane starts every
server that it needs and shares no port, path or cache with another: lanes run in any order, side by side or alone.
"""

from collections.abc import Collection
from dataclasses import dataclass

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Lane:
    """Tests that share servers: those with one of these markers or fixtures."""

    name: str
    holds: str
    folders: tuple[str, ...]
    """Where all of them lie, so that nothing else is read."""
    markers: frozenset[str] = NONE
    fixtures: frozenset[str] = NONE

    def takes(self, *, markers: Collection[str], fixtures: Collection[str]) -> bool:
        return not (self.markers.isdisjoint(markers) and self.fixtures.isdisjoint(fixtures))


ENGINES = Lane("engines", "real SGLang servers", ("tests/engine",), markers=frozenset({"engine"}))
SERVING = Lane("serving", "Duet on the local cluster", ("tests/e2e",), fixtures=frozenset({"operator_release"}))
CLUSTER = Lane("cluster", "the local cluster itself, and the demo", ("tests/e2e",), markers=frozenset({"cluster"}))
API_SERVER = Lane("apiserver", "the real API server", ("tests/integration",), markers=frozenset({"apiserver"}))
REST = Lane("rest", "all that needs no control plane", ("tests",))

LANES = (ENGINES, SERVING, CLUSTER, API_SERVER, REST)
"""In the order in which they start: the longest first, so that none is left alone at the end."""


def lane_of(*, markers: Collection[str], fixtures: Collection[str]) -> Lane:
    """The first lane that takes a test, else the rest."""
    return next((lane for lane in LANES if lane.takes(markers=markers, fixtures=fixtures)), REST)
