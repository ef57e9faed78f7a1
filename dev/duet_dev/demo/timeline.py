"""The picture of a run: load against capacity, both pools, and what the users felt, over one time axis.

Invariant: draws only what the run holds; colours are of the Okabe-Ito palette, told apart without colour vision, and
every band also differs in shade or hatching.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from duet_dev.demo.observations import PoolCounts, ScaleAction
from duet_dev.demo.results import Figures
from duet_dev.demo.run import Run
from duet_dev.demo.words import percent
from duet_operator.simulation.plot_style import BLUE, GREEN, GREY, ORANGE, SKY, STYLE, VERMILION

WINDOW_SECONDS = 10.0
WINDOW_STEP_SECONDS = 2.0
LOAD_BIN_SECONDS = 4.0
HEADROOM = 1.4
HEIGHTS = (1.5, 1.15, 1.15, 1.0, 1.0)
DOTS_PER_INCH = 150


def draw_timeline(run: Run, path: Path, *, title: str) -> None:
    """Write the picture as a PNG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 12), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(5, 1, sharex=True, height_ratios=HEIGHTS)
        figure.suptitle(f"{title}: {_summary(run)}", x=0.01, ha="left", fontsize=12, fontweight="bold")
        _draw_load(panels[0], run)
        _draw_pool(panels[1], run, "prefill", BLUE)
        _draw_pool(panels[2], run, "decode", GREEN)
        objective, windows = run.results.objective, _windows(run)
        ttfts = [(end, figures.ttft_p50_seconds, figures.ttft_p95_seconds) for end, figures in windows]
        _draw_latency(panels[3], "Time to first token", objective.ttft_seconds, ttfts)
        itls = [(end, figures.itl_p50_seconds, figures.itl_p95_seconds) for end, figures in windows]
        _draw_latency(panels[4], "Inter-token latency", objective.itl_seconds, itls)
        panels[4].set_xlabel("seconds since the first request")
        panels[4].set_xlim(0, run.duration_seconds)
        figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")


def _summary(run: Run) -> str:
    """What a reader should take away."""
    figures = run.figures
    return f"{figures.requests} requests, {figures.failed} failed, {percent(figures.attainment)} met TTFT and ITL"


def _draw_load(axes: Axes, run: Run) -> None:
    """Requests that arrive, and GPUs that are billed against the peak held all the time."""
    sent = [record.sent_at_seconds - run.start_seconds for record in run.results.records]
    edges = np.arange(0, run.duration_seconds + LOAD_BIN_SECONDS, LOAD_BIN_SECONDS)
    counts, _ = np.histogram(sent, edges)
    axes.stairs(counts / LOAD_BIN_SECONDS, edges, fill=True, color=SKY, alpha=0.45, label="requests/s")
    axes.set_ylabel("requests/s")
    axes.set_title("Load and GPUs")
    axes.set_ylim(0, counts.max(initial=1.0) / LOAD_BIN_SECONDS * HEADROOM)
    gpus = axes.twinx()
    gpus.grid(False)
    gpus.spines["right"].set_visible(True)
    times, held = _steps(run)
    peak = np.full_like(held, run.peak_gpus)
    gpus.fill_between(times, held, peak, step="post", color=ORANGE, alpha=0.12, label="GPU-hours saved")
    gpus.step(times, held, where="post", color=VERMILION, linewidth=2.2, label="GPUs billed")
    gpus.step(times, peak, where="post", color=GREY, linestyle="--", linewidth=1.4, label="peak held all the time")
    gpus.set_ylim(0, run.peak_gpus * HEADROOM)
    gpus.yaxis.set_major_locator(MaxNLocator(integer=True))
    gpus.set_ylabel("GPUs (slices)")
    handles = [*axes.get_legend_handles_labels()[0], *gpus.get_legend_handles_labels()[0]]
    gpus.legend(handles=handles, loc="upper left", ncols=4)
    saved = 1 - run.gpu_hours_ratio
    gpus.annotate(
        f"{saved:.0%} fewer GPU-hours",
        (0.995, 0.9),
        xycoords="axes fraction",
        ha="right",
        color=VERMILION,
        weight="bold",
    )


def _draw_pool(axes: Axes, run: Run, pool: str, color: str) -> None:
    """Workers by state, what the planner wanted, and its decisions."""
    samples = run.loaded_samples
    times = [sample.time_seconds - run.start_seconds for sample in samples]
    counts: list[PoolCounts] = [getattr(sample, pool) for sample in samples]
    ready = np.array([count.ready for count in counts], dtype=float)
    starting = np.array([count.starting for count in counts], dtype=float)
    draining = np.array([count.draining for count in counts], dtype=float)
    desired = [count.desired for count in counts]
    axes.fill_between(times, 0, ready, step="post", color=color, alpha=0.55, linewidth=0, label="ready")
    axes.fill_between(
        times,
        ready,
        ready + starting,
        step="post",
        facecolor=ORANGE,
        alpha=0.8,
        hatch="////",
        linewidth=0,
        label="starting",
    )
    axes.fill_between(
        times,
        ready + starting,
        ready + starting + draining,
        step="post",
        facecolor=GREY,
        alpha=0.7,
        hatch="....",
        linewidth=0,
        label="draining",
    )
    axes.step(times, desired, where="post", color="black", linewidth=1.3, label="desired")
    highest = max([*(count.held for count in counts), *desired], default=1)
    axes.set_ylim(0, highest * HEADROOM)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{pool.capitalize()} workers")
    axes.set_ylabel("workers")
    for action in run.loaded_actions:
        if action.pool == pool:
            _mark(axes, action, action.time_seconds - run.start_seconds)
    axes.plot([], [], linestyle="none", marker="^", color=VERMILION, label="scaled up")
    axes.plot([], [], linestyle="none", marker="v", color=GREY, label="scaled down")
    axes.legend(loc="upper right", ncols=6)


def _mark(axes: Axes, action: ScaleAction, time: float) -> None:
    """A decision: a triangle that points the way."""
    up = action.to_replicas > action.from_replicas
    low, high = axes.get_ylim()
    height = low + 0.78 * (high - low)
    axes.plot(
        [time],
        [height],
        marker="^" if up else "v",
        color=VERMILION if up else GREY,
        markersize=7,
        clip_on=False,
        zorder=5,
    )


def _windows(run: Run) -> list[tuple[float, Figures]]:
    """Figures over a sliding window, each with the window's end."""
    ends = np.arange(WINDOW_SECONDS, run.duration_seconds + WINDOW_STEP_SECONDS, WINDOW_STEP_SECONDS)
    start = run.start_seconds
    return [(float(end), run.results.figures(start + end - WINDOW_SECONDS, start + end)) for end in ends]


def _draw_latency(
    axes: Axes, title: str, objective_seconds: float, points: Sequence[tuple[float, float | None, float | None]]
) -> None:
    """P50 and P95 over a sliding window against the objective."""
    ends = [end for end, _, _ in points]
    middle_ms = _milliseconds([middle for _, middle, _ in points])
    tail_ms = _milliseconds([tail for _, _, tail in points])
    axes.plot(ends, tail_ms, color=VERMILION, linewidth=2, label="P95")
    axes.plot(ends, middle_ms, color=BLUE, linewidth=1.6, label="P50")
    limit = 1000 * objective_seconds
    axes.axhline(limit, color="black", linestyle="--", linewidth=1.2, label=f"objective {limit:.0f} ms")
    highest = np.nanmax([*tail_ms, limit])
    axes.set_ylim(0, highest * HEADROOM)
    axes.set_title(f"{title} (over {WINDOW_SECONDS:.0f} s)")
    axes.set_ylabel("ms")
    axes.legend(loc="upper right", ncols=3)


def _milliseconds(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else 1000 * value for value in values]


def _steps(run: Run) -> tuple[list[float], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Billed GPUs over the run's own clock, up to its end."""
    steps = run.gpu_steps
    times = [moment - run.start_seconds for moment, _ in steps] + [run.duration_seconds]
    held = [float(count) for _, count in steps] + [float(steps[-1][1])]
    return times, np.array(held)
