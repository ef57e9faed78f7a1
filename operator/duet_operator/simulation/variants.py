"""Who routes and who plans, by name or by `package.module:factory`.

Invariant: a name means the same in a file's `routing` and `planner` and on the command line; an unknown one is refused
with those that there are.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from duet_engine.policy.baselines import Baseline
from duet_engine.policy.deflect import DeflectionMode, DeflectionRule, printed_rule
from duet_engine.simulator.scenario import baseline_dispatch
from duet_operator.simulation.live_planner import LivePlanner
from duet_operator.simulation.peers import PEERS
from duet_operator.simulation.sizing import answer, summarise
from duet_operator.simulation.study import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from duet_engine.simulator.scenario import Planner
    from duet_operator.planner.types import Counts
    from duet_operator.simulation.study import Study

DUET, FIXED, PEAK = "duet", "fixed", "peak"
PEAK_SECONDS = 300.0
JOINT = "+"
"""Between a planner and a routing of one variant."""


class UnknownVariantError(ValueError):
    """A name that nothing has; the message lists those that there are."""


def _off(rule: DeflectionRule) -> DeflectionRule:
    return replace(rule, mode=DeflectionMode.OFF)


def _printed(rule: DeflectionRule) -> DeflectionRule:
    return printed_rule(rule.itl_seconds)


def _baseline(name: str) -> Variant:
    """Baselines send prompts away at once; only those whose rule says so send any to decode workers."""
    deflects = name in (Baseline.LEAST_TTFT, Baseline.PREFIX_THRESHOLD)
    return Variant(name=name, dispatch=lambda _: baseline_dispatch(name), local_prefill=deflects)


ROUTINGS: Mapping[str, Variant] = {
    DUET: Variant(name=DUET),
    "no-deflection": Variant(name="no-deflection", rule=_off, local_prefill=False),
    "kairos": Variant(name="kairos", rule=_printed),
    "gate-and-route": Variant(name="gate-and-route", printed_gate=True),
    **{str(name): _baseline(name) for name in Baseline},
}


def _live(study: Study) -> Planner:
    return LivePlanner(study.spec, study.performance)


def _peak(study: Study) -> Counts:
    """Hindsight: what the sizing law says of the busiest minutes, held all the time."""
    return answer(study, summarise(study.workload.requests(), window_seconds=PEAK_SECONDS)).counts


PLANNERS: Mapping[str, Callable[[Study], Planner] | None] = {DUET: _live, FIXED: None, PEAK: None, **PEERS}


def variant_of(study: Study) -> Variant:
    """What the file itself asks for."""
    return _joined(study.default_planner, study.default_routing)


def variant(name: str, study: Study) -> Variant:
    """A variant by name: a planner, a routing, or `planner+routing`; what isn't named is the file's own.

    Raises:
        UnknownVariantError: for a name that nothing has.
    """
    first, joint, second = name.partition(JOINT)
    if joint:
        return replace(_joined(first, second), name=name)
    if name == DUET:
        return replace(_joined(DUET, DUET), name=name)
    if name in PLANNERS:
        return replace(_joined(name, study.default_routing), name=name)
    if name in ROUTINGS:
        return replace(_joined(study.default_planner, name), name=name)
    if ":" in name:
        plans = hasattr(_load(name)(study), "plan")
        joined = _joined(name, study.default_routing) if plans else _joined(study.default_planner, name)
        return replace(joined, name=name)
    raise UnknownVariantError(f"{name!r} is neither a planner nor a routing; {known()}")


def known() -> str:
    """What there is, for people."""
    return (
        f"planners are {', '.join(PLANNERS)}; routings are {', '.join(ROUTINGS)}; planner{JOINT}routing names both, "
        "and package.module:factory is one of your own"
    )


def _joined(planner: str, routing: str) -> Variant:
    chosen = _routing(routing)
    name = planner if routing == DUET else f"{planner}{JOINT}{routing}"
    return replace(chosen, name=name, planner=_planner(planner), start=_peak if planner == PEAK else None)


def _routing(name: str) -> Variant:
    if name in ROUTINGS:
        return ROUTINGS[name]
    if ":" not in name:
        raise UnknownVariantError(f"routing {name!r} isn't known; {known()}")
    factory = _load(name)
    return Variant(name=name, dispatch=lambda study: lambda: factory(study))


def _planner(name: str) -> Callable[[Study], Planner] | None:
    if name in PLANNERS:
        return PLANNERS[name]
    if ":" not in name:
        raise UnknownVariantError(f"planner {name!r} isn't known; {known()}")
    factory: Callable[[Study], Planner] = _load(name)
    return factory


def _load(name: str) -> Callable[[Study], Any]:
    """A factory of one's own, found from the present folder too: it takes the study and makes what has `plan` or
    `dispatch`."""
    if "" not in sys.path:
        sys.path.append("")
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[Study], Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownVariantError(f"{name!r} can't be loaded: {error}") from error
    return found


def chosen(names: Sequence[str], study: Study) -> list[Variant]:
    """The file's own first, then those that are compared with it."""
    own = variant_of(study)
    return [own, *(each for name in names if (each := variant(name, study)).name != own.name)]
