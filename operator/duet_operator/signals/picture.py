"""What gateways told in one pass, from what they answered in this and earlier ones.

Invariant: no I/O and no clock. `complete` is True only when every Ready gateway answered with a recent document; the
reasons of those that didn't are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duet_operator.signals import workers
from duet_operator.signals.class_demands import ClassDemands
from duet_operator.signals.classes import ClassesInUse
from duet_operator.signals.demand import LONG_WINDOW_SECONDS, SHORT_WINDOW_SECONDS, DemandHistory
from duet_operator.signals.freshness import Freshness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duet_engine.protocol import Role, WorkerProfile, WorkerState
    from duet_operator.planner.types import Attainment, Demand
    from duet_operator.pods import Pod
    from duet_operator.signals.gateways import Scrape


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What gateways told in one pass."""

    demand: Demand | None = None
    attainment: Attainment | None = None
    """Over the demand window: what the present workers achieve."""
    attainment_told: Attainment | None = None
    """Over a longer window, for people."""
    attainment_unsettled: bool = False
    """Nothing ended yet, in a window that isn't as long as it should be."""
    states: Mapping[str, WorkerState]
    """Pod uid -> state, of the pods that there are."""
    profiles: Mapping[Role, WorkerProfile]
    classes_in_use: frozenset[str] = frozenset()
    quiet_seconds: float = 0.0
    """How long nobody has asked for anything."""
    class_demands: Mapping[str, Demand] = field(default_factory=dict)
    burn_rate_5m: float | None = None
    burn_rate_1h: float | None = None
    late: Mapping[str, float] = field(default_factory=dict)
    """Gateway pods that say that they don't keep up -> how late their event loops run, in seconds."""
    gateways: int = 0
    """Ready gateway pods: those that must answer."""
    silent: Mapping[str, str]
    """Ready gateway pods that didn't answer well -> why."""

    @property
    def complete(self) -> bool:
        """Everything that should be known is."""
        return self.gateways > 0 and not self.silent

    @property
    def first_look(self) -> bool:
        """All answered, and none twice yet: counters tell nothing before there are two of them."""
        return self.complete and self.demand is None


def ready(pods: Sequence[Pod]) -> tuple[Pod, ...]:
    """The gateway pods that must answer."""
    return tuple(pod for pod in pods if pod.alive and pod.ready and pod.address)


class Gateways:
    """The gateways of one object over time."""

    def __init__(self, *, attainment_window_seconds: float) -> None:
        self._attainment_window_seconds = attainment_window_seconds
        self._history = DemandHistory(fine_seconds=2 * attainment_window_seconds)
        self._freshness = Freshness()
        self._classes = ClassesInUse()
        self._class_demands = ClassDemands(fine_seconds=2 * attainment_window_seconds)

    def see(
        self,
        scrape: Scrape,
        *,
        now_seconds: float,
        window_seconds: float,
        stale_after_seconds: float,
        goal: float,
        worker_pods: Sequence[Pod],
        revision: str,
    ) -> Signals:
        """The picture with these answers."""
        self._freshness = self._freshness.observe(scrape.documents, now_seconds=now_seconds)
        stale = self._freshness.stale(now_seconds=now_seconds, limit_seconds=stale_after_seconds)
        fresh = [document for pod, document in scrape.documents.items() if pod not in stale]
        self._history.add(fresh, now_seconds=now_seconds)
        silent = {**scrape.failures, **{pod: f"unchanged for {age:.0f} s" for pod, age in stale.items()}}
        history, longer = self._history, max(self._attainment_window_seconds, window_seconds)
        told = history.attainment(window_seconds=longer, now_seconds=now_seconds) if fresh else None
        classes_in_use = self._classes.see(fresh, now_seconds=now_seconds)
        demand = history.demand(window_seconds=window_seconds, lengths_seconds=longer, now_seconds=now_seconds)
        return Signals(
            demand=demand if fresh else None,
            attainment=history.attainment(window_seconds=window_seconds, now_seconds=now_seconds) if fresh else None,
            attainment_told=told,
            attainment_unsettled=told is not None and told.met_both_share is None and told.window_seconds < longer,
            states=workers.states(workers.freshest(fresh), worker_pods, stale_after_seconds=stale_after_seconds),
            profiles=workers.profiles(fresh, revision=revision),
            class_demands=self._class_demands.see(
                fresh, demand, window_seconds=window_seconds, lengths_seconds=longer, now_seconds=now_seconds
            ),
            classes_in_use=classes_in_use,
            quiet_seconds=now_seconds - (self._classes.asked_at_seconds or now_seconds),
            burn_rate_5m=history.burn_rate(window_seconds=SHORT_WINDOW_SECONDS, goal=goal, now_seconds=now_seconds),
            burn_rate_1h=history.burn_rate(window_seconds=LONG_WINDOW_SECONDS, goal=goal, now_seconds=now_seconds),
            late={
                pod: document.loop_lag_p99_seconds
                for pod, document in scrape.documents.items()
                if document.saturated and pod not in stale
            },
            gateways=len(scrape.documents) + len(scrape.failures),
            silent=silent,
        )
