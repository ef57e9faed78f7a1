"""Progress of a long job: a live line on a terminal, else one plain line every 20 seconds.

Invariant: a job reports its work in units of its own; time left is told from the rate so far, never from a table.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

PLAIN_INTERVAL_SECONDS = 20.0


def duration(seconds: float) -> str:
    """`75` is `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def time_left(*, done: int, total: int, elapsed_seconds: float) -> str:
    """An estimate from the rate so far, or nothing while there is too little to tell it from."""
    if done < 20 or elapsed_seconds < 5 or done >= total:
        return ""
    return f"about {duration(elapsed_seconds * (total - done) / done)} left"


class JobProgress:
    """One job's progress; `advance` and `describe` are cheap enough to call per unit of work."""

    def __init__(self, title: str, total: int | None = None) -> None:
        self.title, self.total, self.done = title, total, 0
        self._detail = ""
        self._started = self._last_line = time.monotonic()
        self._live: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            )
            self._live = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
            self._task = self._live.add_task(self.title, total=self.total, detail="")
            self._live.start()
        else:
            say(f"{self.title} …")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if kind is None:
            say(f"{self.title}: done in {duration(time.monotonic() - self._started)}")

    def advance(self, detail: str) -> None:
        """One more unit of work is done."""
        self.done += 1
        self.describe(detail)

    def describe(self, detail: str) -> None:
        self._detail = detail
        now = time.monotonic()
        if self._live:
            self._live.update(self._task, completed=self.done, detail=self._status(now))
        elif now - self._last_line >= PLAIN_INTERVAL_SECONDS:
            self._last_line = now
            say(f"{self.title}: {duration(now - self._started)} elapsed, {self._status(now)}")

    def _status(self, now: float) -> str:
        if not self.total:
            return self._detail
        left = time_left(done=self.done, total=self.total, elapsed_seconds=now - self._started)
        return ", ".join(part for part in (left, f"{self.done}/{self.total}", self._detail) if part)


@contextmanager
def announced(title: str) -> Iterator[None]:
    """Say that something short is under way, and how long it took."""
    with JobProgress(title):
        yield


def say(line: str) -> None:
    """A line for the person at the terminal; standard output stays free for results."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
