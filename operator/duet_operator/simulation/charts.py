"""Which charts a report has: cost against attainment, load and GPUs, latencies, and each variant's workers.

Invariant: a variant has the same colour in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duet_operator.simulation.svg import Chart
from duet_operator.simulation.words import number, percent, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duet_operator.simulation.outcome import Outcome, PoolSeries
    from duet_operator.simulation.study import Study

COLOURS = 8
ROOM = 1.12
"""Above the highest value."""
MOST_OBJECTIVES = 4.0
"""Latencies beyond so many objectives are cut off: a chart of a backlog would show nothing else."""
LOAD_COLOUR = 7
NAME_WIDTH, NAME_HEIGHT = 120.0, 16.0
"""Of a point's name: with another point there it goes before its own."""
LONG_SECONDS = 7200.0


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart with its words. The legend names colours by index."""

    title: str
    note: str
    svg: str
    legend: tuple[tuple[int, str], ...]


def panels(study: Study, outcomes: Sequence[Outcome]) -> list[Panel]:
    """All of them, in order."""
    objective = study.spec.objective
    latencies = [
        _latency(
            outcomes,
            title="Time to first token, P95",
            objective_seconds=objective.ttft_seconds,
            values=[outcome.windows.ttft_p95_seconds for outcome in outcomes],
        ),
        _latency(
            outcomes,
            title="Time per output token, P95",
            objective_seconds=objective.itl_seconds,
            values=[outcome.windows.tpot_p95_seconds for outcome in outcomes],
        ),
    ]
    comparison = [_cost(study, outcomes)] if len(outcomes) > 1 else []
    moving = [outcome for outcome in outcomes if outcome.scale_actions] or outcomes[:1]
    return [*comparison, _load(outcomes), *latencies, *(_workers(outcome) for outcome in moving)]


def _cost(study: Study, outcomes: Sequence[Outcome]) -> Panel:
    """What each variant gives for what it costs."""
    points = [(each.figures.gpu_hours, each.figures.attainment or 0.0, each.name) for each in outcomes]
    goal = study.spec.attainment_goal
    lowest = min([attainment for _, attainment, _ in points] + [goal])
    costs = [cost for cost, _, _ in points]
    room = 0.08 * (max(costs) - min(costs)) or 0.1 * max(costs) or 1.0
    chart = Chart(
        x_low=max(min(costs) - room, 0.0),
        x_high=max(costs) + 3 * room,
        y_low=max(lowest - 0.1 * (1 - lowest) - 0.002, 0.0),
        y_high=1.0 + 0.06 * (1 - lowest) + 0.0005,
        label="Attainment over GPU-hours of each variant",
        x_words=lambda value: f"{value:.3g} h",
        y_words=lambda value: percent(min(value, 1.0), 2 if lowest > 0.97 else 0),
    )
    chart.level(goal, f"goal {percent(goal)}")
    for index, (cost, attainment, name) in enumerate(points):
        left, height = chart.x.at(cost), chart.y.at(attainment)
        crowded = any(
            0 <= chart.x.at(other) - left < NAME_WIDTH and abs(chart.y.at(beside) - height) < NAME_HEIGHT
            for place, (other, beside, _) in enumerate(points)
            if place != index
        )
        chart.dot(cost, attainment, name=name, colour=index % COLOURS, before=crowded)
    return Panel(
        "What it gives and what it costs", "attainment over GPU-hours; up and left is better", chart.render(), ()
    )


def _load(outcomes: Sequence[Outcome]) -> Panel:
    """Arrivals, and the GPUs that each variant pays for."""
    windows, end = outcomes[0].windows, outcomes[0].last_arrival_seconds
    peak = max(held for outcome in outcomes for _, held in outcome.gpus)
    busiest = max(windows.requests_per_second, default=1.0) or 1.0
    chart = _over_time(end, ROOM * peak, "Arrivals and GPUs over time", words=_count, counts=True)
    starts = [0.0, *windows.end_seconds[:-1]]
    scaled = [rate / busiest * peak * 0.9 for rate in windows.requests_per_second]
    rates = [f"{rate:.3g}/s" for rate in windows.requests_per_second]
    chart.band(starts, [0.0] * len(starts), scaled, name="requests", colour=LOAD_COLOUR, style="area", words=rates)
    for index, outcome in _first_on_top(outcomes):
        moments = [max(at, 0.0) for at, _ in outcome.gpus if at <= end]
        held = [float(gpus) for at, gpus in outcome.gpus if at <= end]
        chart.steps(moments, held, name=_legend(outcome, outcomes, "GPUs"), colour=index % COLOURS)
    return Panel(
        "Load and GPUs",
        f"lines: GPUs that are paid for; area: requests per second, at most {number(busiest)}",
        chart.render(),
        ((LOAD_COLOUR, "load"), *_names(outcomes, "GPUs")),
    )


def _latency(
    outcomes: Sequence[Outcome],
    *,
    title: str,
    objective_seconds: float,
    values: Sequence[Sequence[float | None]],
) -> Panel:
    highest = max([value for series in values for value in series if value is not None] + [objective_seconds])
    limit = MOST_OBJECTIVES * objective_seconds
    chart = _over_time(
        outcomes[0].last_arrival_seconds, ROOM * min(highest, limit), f"{title} over time", words=seconds
    )
    chart.level(objective_seconds, f"objective {seconds(objective_seconds)}")
    for index, outcome in _first_on_top(outcomes):
        ends = outcome.windows.end_seconds
        chart.line(ends, values[index], name=_legend(outcome, outcomes, "P95"), colour=index % COLOURS)
    cut = f"; cut off at {seconds(ROOM * limit)}" if highest > ROOM * limit else ""
    width = outcomes[0].window_seconds
    return Panel(title, f"by arrival, over {width:.0f} s{cut}", chart.render(), tuple(_names(outcomes, "P95")))


def _workers(outcome: Outcome) -> Panel:
    """Both pools, one upon the other, with the planner's decisions."""
    end = outcome.last_arrival_seconds
    moments = sorted({max(at, 0.0) for pool in outcome.pools.values() for at in pool.seconds if at <= end})
    layers: list[tuple[str, str, list[float]]] = []
    for name, pool in outcome.pools.items():
        sampled = [_at(pool, moment) for moment in moments]
        layers.append((name, "ready", [float(ready) for ready, _ in sampled]))
        if any(starting for _, starting in sampled):
            layers.append((name, "starting", [float(starting) for _, starting in sampled]))
    totals = [sum(values) for values in zip(*(heights for _, _, heights in layers), strict=True)]
    highest = ROOM * max(totals, default=1.0)
    chart = _over_time(end, highest, f"Workers of {outcome.name}", words=_count, counts=True)
    lower = [0.0] * len(moments)
    colours = {name: index for index, name in enumerate(outcome.pools)}
    for name, state, heights in layers:
        upper = [below + height for below, height in zip(lower, heights, strict=True)]
        chart.band(moments, lower, upper, name=f"{name} {state}", colour=colours[name], style=state)
        lower = upper
    before = (0, 0)
    for decision in outcome.scale_actions:
        after = (decision.prefill, decision.decode)
        chart.mark(decision.at_seconds, title=decision.reason, colour=LOAD_COLOUR, up=sum(after) >= sum(before))
        before = after
    figures = outcome.figures
    note = f"{figures.gpu_hours:.2f} GPU-hours, {figures.scale_actions} scale actions; pale: starting"
    return Panel(
        f"Workers: {outcome.name}", note, chart.render(), tuple((index, name) for name, index in colours.items())
    )


def _count(value: float) -> str:
    return f"{value:g}"


def _at(pool: PoolSeries, moment: float) -> tuple[int, int]:
    """Ready and starting workers at a moment."""
    index = sum(since <= moment for since in pool.seconds) - 1
    return (pool.ready[index], pool.starting[index]) if index >= 0 else (0, 0)


def _over_time(
    end_seconds: float, highest: float, label: str, *, words: Callable[[float], str], counts: bool = False
) -> Chart:
    """Its x is in seconds, told in round minutes or hours."""
    unit_seconds, unit = (3600.0, "h") if end_seconds > LONG_SECONDS else (60.0, "min")
    return Chart(
        x_high=end_seconds,
        y_high=highest,
        label=label,
        x_words=lambda value: f"{value / unit_seconds:g} {unit}",
        y_words=words,
        x_unit=unit_seconds,
        counts=counts,
    )


def _first_on_top(outcomes: Sequence[Outcome]) -> list[tuple[int, Outcome]]:
    """In the order of drawing: what is drawn last covers the others."""
    return list(enumerate(outcomes))[::-1]


def _legend(outcome: Outcome, outcomes: Sequence[Outcome], alone: str) -> str:
    return outcome.name if len(outcomes) > 1 else alone


def _names(outcomes: Sequence[Outcome], alone: str) -> list[tuple[int, str]]:
    return [(index % COLOURS, _legend(outcome, outcomes, alone)) for index, outcome in enumerate(outcomes)]
