"""The live view: pools, load, what users feel, and the last decision, redrawn each second; plain lines elsewhere.

Invariant: shows only what was seen; a number that nobody told is a dash, never zero.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from duet_dev.demo.observations import PoolCounts, Sample
from duet_dev.demo.observer import Observer
from duet_dev.demo.results import Figures, Results
from duet_dev.demo.words import milliseconds, percent
from duet_dev.progress import duration
from duet_engine.slo import attainment

REDRAW_SECONDS = 1.0
PLAIN_SECONDS = 10.0
WINDOW_SECONDS = 15.0
BARS = {"ready": ("█", "green"), "starting": ("▒", "yellow"), "draining": ("░", "bright_black")}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown while the load runs."""

    observer: Observer
    results: Results
    planned_requests: int
    planned_seconds: float

    async def show(self, console: Console) -> None:
        """Until cancelled."""
        started = time.time()
        if not console.is_terminal:
            say = partial(console.print, highlight=False, soft_wrap=True)
            await _every(PLAIN_SECONDS, lambda: say(self.line(time.time() - started)))
            return
        with Live(self.render(0.0), console=console, auto_refresh=False) as live:
            try:
                await _every(REDRAW_SECONDS, lambda: live.update(self.render(time.time() - started), refresh=True))
            finally:
                live.update(self.render(time.time() - started))

    def line(self, elapsed_seconds: float) -> str:
        """Everything in one line, for logs."""
        sample, figures = self._sample(), self._recent()
        return (
            f"{duration(elapsed_seconds)}/{duration(self.planned_seconds)}"
            f"  prefill {_plain(sample.prefill)}  decode {_plain(sample.decode)}"
            f"  {figures.requests_per_second:.1f} req/s  {figures.output_tokens_per_second:.0f} tok/s"
            f"  TTFT P95 {milliseconds(figures.ttft_p95_seconds)}  ITL P95 {milliseconds(figures.itl_p95_seconds)}"
            f"  attained {percent(self._attainment())}  failed {len(self.results.failed)}"
        )

    def render(self, elapsed_seconds: float) -> RenderableType:
        """The whole view."""
        sample, recent = self._sample(), self._recent()
        figures = Table.grid(padding=(0, 3))
        for row in self._figures(recent):
            figures.add_row(*row)
        decision = Text(sample.decision or "no decision yet", style="italic")
        done = len(self.results.records)
        failed = len(self.results.failed)
        left = max(0.0, self.planned_seconds - elapsed_seconds)
        progress = Table.grid(padding=(0, 1))
        progress.add_row(
            ProgressBar(total=max(self.planned_requests, 1), completed=done, width=40),
            f"{done}/{self.planned_requests} requests",
            f"[{'red' if failed else 'green'}]{failed} failed[/]",
            f"{duration(elapsed_seconds)} elapsed, {duration(left)} left",
        )
        return Panel(Group(_pools(sample), Text(), figures, Text(), decision, Text(), progress), title="Duet")

    def _figures(self, recent: Figures) -> list[tuple[str, str, str, str]]:
        return [
            (
                "requests/s",
                f"{recent.requests_per_second:.1f}",
                "output tok/s",
                f"{recent.output_tokens_per_second:.0f}",
            ),
            ("TTFT P50", milliseconds(recent.ttft_p50_seconds), "P95", milliseconds(recent.ttft_p95_seconds)),
            ("ITL P50", milliseconds(recent.itl_p50_seconds), "P95", milliseconds(recent.itl_p95_seconds)),
            ("attained now", percent(recent.attainment), "so far", percent(self._attainment())),
            ("deflected now", percent(recent.deflected_share), "waiting", str(self._sample().waiting_requests)),
        ]

    def _sample(self) -> Sample:
        return self.observer.samples[-1] if self.observer.samples else Sample(time_seconds=0.0)

    def _recent(self) -> Figures:
        now = time.time()
        return self.results.figures(now - WINDOW_SECONDS, now)

    def _attainment(self) -> float | None:
        return attainment(self.results.verdicts)


def _pools(sample: Sample) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, pool in (("prefill", sample.prefill), ("decode", sample.decode)):
        bar = Text()
        for state, (mark, color) in BARS.items():
            bar.append((mark * 2 + " ") * getattr(pool, state), style=color)
        counts = f"{pool.ready} ready  {pool.starting} starting  {pool.draining} draining  {pool.desired} desired"
        table.add_row(f"[bold]{name}[/]", counts, bar)
    return table


def _plain(pool: PoolCounts) -> str:
    extra = "".join(
        (f" +{pool.starting} starting" * bool(pool.starting), f" -{pool.draining} draining" * bool(pool.draining))
    )
    return f"{pool.ready}/{pool.desired}{extra}"


async def _every(seconds: float, act: Callable[[], None]) -> None:
    while True:
        act()
        await asyncio.sleep(seconds)
