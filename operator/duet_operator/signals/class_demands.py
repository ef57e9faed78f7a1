"""What users of each class ask for, over the window over which all of them are measured.

Invariant: no clock and no I/O. An object whose gateways know only one class costs nothing here: that is everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duet_operator.signals.demand import DemandHistory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duet_engine.protocol import ClassDemand, GatewayDemand
    from duet_operator.planner.types import Demand


class ClassDemands:
    """Of one object's gateways."""

    def __init__(self, *, fine_seconds: float) -> None:
        self._fine_seconds = fine_seconds
        self._histories: dict[str, DemandHistory] = {}

    def see(
        self,
        documents: Sequence[GatewayDemand],
        everybody: Demand | None,
        *,
        window_seconds: float,
        lengths_seconds: float,
        now_seconds: float,
    ) -> Mapping[str, Demand]:
        """By class, with what gateways say now; a class that was seen for the first time has no demand yet."""
        names = {each.name for document in documents for each in document.classes}
        if len(names) <= 1:
            self._histories.clear()
            return {} if everybody is None else dict.fromkeys(names, everybody)
        found = {}
        for name in names:
            history = self._histories.setdefault(name, DemandHistory(fine_seconds=self._fine_seconds))
            history.add((_only(document, name) for document in documents), now_seconds=now_seconds)
            demand = history.demand(
                window_seconds=window_seconds, lengths_seconds=lengths_seconds, now_seconds=now_seconds
            )
            if demand is not None:
                found[name] = demand
        return found


def _only(document: GatewayDemand, name: str) -> GatewayDemand:
    classes: tuple[ClassDemand, ...] = tuple(each for each in document.classes if each.name == name)
    waiting = sum(each.waiting_requests for each in classes)
    return document.model_copy(update={"classes": classes, "waiting_requests": waiting})
