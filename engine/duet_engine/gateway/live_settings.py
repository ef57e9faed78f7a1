"""The settings that change while a gateway runs: objectives and deflection, from the spec of its DuetDeployment.

Invariant: an unreadable field keeps its default and is said once in the log; a gateway never stops serving because of a
field that it doesn't know. The API server has validated the object; this is no second validation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, TypeVar

from duet_engine.policy.deflect import DeflectionMode, DeflectionRule
from duet_engine.protocol import Knobs
from duet_engine.slo import Objective

log = logging.getLogger(__name__)

MultiplexingMode = Literal["Auto", "On", "Off"]
_MULTIPLEXING_MODES: dict[str, MultiplexingMode] = {"Auto": "Auto", "On": "On", "Off": "Off"}


DEFAULT_CLASS = "default"
LEAST_WEIGHT = 1


@dataclass(frozen=True, slots=True)
class RequestClass:
    """What requests of one class are promised, and how much they are worth against others."""

    objective: Objective
    weight: int = LEAST_WEIGHT


class RoutingPolicy(StrEnum):
    """How workers are chosen, and whether classes wait for each other when there aren't enough."""

    AUTO = "Auto"
    GATE_AND_ROUTE = "GateAndRoute"
    LEAST_TTFT = "LeastTTFT"
    ROUND_ROBIN = "RoundRobin"


@dataclass(frozen=True, slots=True)
class Hold:
    """How requests wait at one gateway pod while no worker may take them."""

    requests: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """What is in force now; `generation` orders it."""

    generation: int = 0
    objective: Objective = field(default_factory=lambda: Objective(ttft_seconds=1.0, itl_seconds=0.05))
    deflection: DeflectionRule = field(default_factory=lambda: DeflectionRule(itl_seconds=0.05))
    multiplexing: MultiplexingMode = "Auto"
    max_look_ahead: int = 8
    model_names: tuple[str, ...] = ()
    """Names that clients may ask for; empty while none is known."""
    classes: Mapping[str, RequestClass] = field(default_factory=dict)
    routing: RoutingPolicy = RoutingPolicy.AUTO
    hold: Hold | None = None
    """None: as the gateway was started."""

    def objective_of(self, class_name: str) -> Objective:
        """A class that isn't known (any more) has the objective of all."""
        found = self.classes.get(class_name)
        return self.objective if found is None else found.objective

    def weight_of(self, class_name: str) -> int:
        """A class that isn't known (any more) has the least."""
        found = self.classes.get(class_name)
        return LEAST_WEIGHT if found is None else found.weight

    def knobs(self) -> Knobs:
        """What engines must know of it."""
        return Knobs(
            generation=self.generation,
            itl_milliseconds=max(1, round(self.deflection.itl_seconds * 1e3)),
            deflection_enabled=self.deflection.mode is not DeflectionMode.OFF,
            beta_percent=round(self.deflection.beta * 100),
            chunk_candidates_tokens=self.deflection.candidates_tokens,
            multiplexing=self.multiplexing,
            max_look_ahead=self.max_look_ahead,
        )


def live_settings(spec: Mapping[str, Any], *, generation: int) -> LiveSettings:
    """Read the spec of a DuetDeployment, or of a static file."""
    slo, deflection = _part(spec, "slo"), _part(spec, "deflection")
    multiplexing, model = _part(spec, "multiplexing"), _part(spec, "model")
    unloaded_percent = _number(slo, "ttftUnloadedPercent", 0.0)
    names = tuple(str(model[key]) for key in ("servedName", "id") if model.get(key))
    objective = Objective(
        ttft_seconds=_number(slo, "ttftMilliseconds", 1000.0) / 1e3,
        itl_seconds=_number(slo, "itlMilliseconds", 50.0) / 1e3,
        ttft_unloaded_ratio=unloaded_percent / 100 if unloaded_percent else None,
    )
    classes = _classes(slo.get("classes"), objective)
    return LiveSettings(
        generation=generation,
        objective=objective,
        classes=classes,
        deflection=DeflectionRule(
            # One batch holds requests of all classes, so a chunk beside it must be safe for the strictest.
            itl_seconds=min([objective.itl_seconds, *(each.objective.itl_seconds for each in classes.values())]),
            mode=_mode(deflection.get("mode")),
            alpha=_number(deflection, "alphaPercent", 130.0) / 100,
            beta=min(_number(deflection, "betaPercent", 85.0) / 100, 1.0),
        ),
        multiplexing=_MULTIPLEXING_MODES.get(str(multiplexing.get("mode")), "Auto"),
        max_look_ahead=max(1, int(_number(multiplexing, "maxLookAhead", 8.0))),
        model_names=names,
        routing=_routing(_part(spec, "routing").get("policy")),
        hold=_hold(_part(_part(spec, "gateway"), "hold")),
    )


def _classes(entries: object, objective: Objective) -> dict[str, RequestClass]:
    """By name; what a class doesn't say is as for all."""
    found = {}
    for entry in entries if isinstance(entries, list | tuple) else ():
        if isinstance(entry, Mapping) and entry.get("name"):
            own = replace(
                objective,
                ttft_seconds=_number(entry, "ttftMilliseconds", objective.ttft_seconds * 1e3) / 1e3,
                itl_seconds=_number(entry, "itlMilliseconds", objective.itl_seconds * 1e3) / 1e3,
            )
            found[str(entry["name"])] = RequestClass(own, int(_number(entry, "weight", LEAST_WEIGHT)))
    return found


def _part(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = spec.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(part: Mapping[str, Any], name: str, default: float) -> float:
    value = part.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        log.warning("%s: not a positive number: %r; %g stays in force", name, value, default)
        return default
    return float(value)


def _hold(part: Mapping[str, Any]) -> Hold | None:
    """All of it or nothing: the API server fills in what isn't said."""
    if not part:
        return None
    return Hold(
        requests=int(_number(part, "maxRequests", 1000.0)),
        bytes=int(_number(part, "maxBytes", 256.0 * 2**20)),
        seconds=_number(part, "timeoutSeconds", 300.0),
    )


def _mode(value: object) -> DeflectionMode:
    return _one_of(DeflectionMode, value, DeflectionMode.AUTO, "deflection.mode")


def _routing(value: object) -> RoutingPolicy:
    return _one_of(RoutingPolicy, value, RoutingPolicy.AUTO, "routing.policy")


AnyWord = TypeVar("AnyWord", bound=StrEnum)


def _one_of(words: type[AnyWord], value: object, default: AnyWord, path: str) -> AnyWord:
    if value is None:
        return default
    try:
        return words(str(value))
    except ValueError:
        log.warning("%s: unknown %r; %s stays in force", path, value, default)
        return default
