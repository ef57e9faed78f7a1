"""The picture of one variant: load and GPUs, workers, latencies, over one time axis.

Invariant: draws only what the JSON holds too; colours are of the Okabe-Ito palette, and what starts is hatched as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duet_operator.simulation.plot_style import BLUE, GREEN, ORANGE, SKY, STYLE, VERMILION
from duet_operator.simulation.words import percent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from duet_operator.simulation.outcome import Outcome
    from duet_operator.simulation.study import Study

HEIGHTS = (1.4, 1.2, 1.0, 1.0)
HEADROOM = 1.35
MOST_OBJECTIVES = 4.0
DOTS_PER_INCH = 150


def draw_timeline(study: Study, outcome: Outcome, path: Path) -> None:
    """Write the picture as a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figures, objective, windows = outcome.figures, study.spec.objective, outcome.windows
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 10), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(4, 1, sharex=True, height_ratios=HEIGHTS)
        figure.suptitle(
            f"{study.name}, {outcome.name}: {percent(figures.attainment, 2)} met TTFT and ITL, "
            f"{figures.gpu_hours:.2f} GPU-hours",
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        _draw_load(panels[0], outcome)
        _draw_workers(panels[1], outcome)
        ttft = ((windows.ttft_p95_seconds, VERMILION, "P95"), (windows.ttft_p50_seconds, BLUE, "P50"))
        _draw_latency(panels[2], outcome, "Time to first token", objective.ttft_seconds, ttft)
        tpot = ((windows.tpot_p95_seconds, VERMILION, "P95"),)
        _draw_latency(panels[3], outcome, "Time per output token", objective.itl_seconds, tpot)
        panels[3].set_xlabel("minutes")
        panels[3].set_xlim(0, outcome.last_arrival_seconds / 60)
        figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")


def _minutes(seconds: Sequence[float]) -> list[float]:
    return [max(value, 0.0) / 60 for value in seconds]


def _draw_load(axes: Axes, outcome: Outcome) -> None:
    windows = outcome.windows
    edges = [0.0, *_minutes(windows.end_seconds)]
    axes.stairs(windows.requests_per_second, edges, fill=True, color=SKY, alpha=0.45, label="requests/s")
    axes.set_ylim(0, max(windows.requests_per_second) * HEADROOM)
    axes.set_ylabel("requests/s")
    axes.set_title("Load and GPUs")
    gpus = axes.twinx()
    gpus.grid(False)
    gpus.spines["right"].set_visible(True)
    moments = _minutes([*(at for at, _ in outcome.gpus), outcome.last_arrival_seconds])
    held = [count for _, count in outcome.gpus]
    gpus.step(moments, [*held, held[-1]], where="post", color=VERMILION, linewidth=2, label="GPUs")
    gpus.set_ylim(0, outcome.figures.peak_gpus * HEADROOM)
    gpus.set_ylabel("GPUs")
    handles = [*axes.get_legend_handles_labels()[0], *gpus.get_legend_handles_labels()[0]]
    gpus.legend(handles=handles, loc="upper left", ncols=2)


def _draw_workers(axes: Axes, outcome: Outcome) -> None:
    highest = 1
    for (name, pool), colour in zip(outcome.pools.items(), (BLUE, GREEN, ORANGE), strict=False):
        moments = _minutes([*pool.seconds, outcome.last_arrival_seconds])
        ready = [*pool.ready, pool.ready[-1]]
        held = [up + starting for up, starting in zip(ready, [*pool.starting, pool.starting[-1]], strict=True)]
        axes.step(moments, ready, where="post", color=colour, linewidth=2, label=f"{name} ready")
        axes.fill_between(
            moments,
            ready,
            held,
            step="post",
            facecolor=colour,
            alpha=0.35,
            hatch="////",
            linewidth=0,
            label=f"{name} starting",
        )
        highest = max(highest, *held)
    axes.set_ylim(0, highest * HEADROOM)
    axes.set_title("Workers")
    axes.set_ylabel("workers")
    axes.legend(loc="upper left", ncols=4)


def _draw_latency(
    axes: Axes,
    outcome: Outcome,
    title: str,
    objective_seconds: float,
    series: Sequence[tuple[Sequence[float | None], str, str]],
) -> None:
    """Cut off where a backlog would hide everything else."""
    ends = _minutes(outcome.windows.end_seconds)
    highest = objective_seconds
    for values, colour, label in series:
        known = [float("nan") if value is None else 1000 * value for value in values]
        axes.plot(ends, known, color=colour, linewidth=1.8, label=label)
        highest = max([highest, *(value for value in values if value is not None)])
    limit = 1000 * objective_seconds
    axes.axhline(limit, color="black", linestyle="--", linewidth=1.2, label=f"objective {limit:.0f} ms")
    axes.set_ylim(0, 1000 * min(highest, MOST_OBJECTIVES * objective_seconds) * HEADROOM)
    axes.set_title(f"{title} (by arrival, over {outcome.window_seconds:.0f} s)")
    axes.set_ylabel("ms")
    axes.legend(loc="upper right", ncols=3)
