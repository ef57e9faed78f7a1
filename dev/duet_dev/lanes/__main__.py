"""Run lanes side by side, show their lines as they come, and end with one verdict.

Invariant: the exit status is 0 only if every lane ended well; SIGINT and SIGTERM end every lane as Ctrl-C does, which
takes its servers along, and a lane whose driver is gone ends likewise.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from duet_dev.lanes.lane import LANES, Lane
from duet_dev.lanes.outcome import Outcome
from duet_dev.paths import REPOSITORY
from duet_dev.processes import guarded
from duet_dev.progress import duration

AT_ONCE = os.cpu_count() or 1
NO_TESTS = 5
INTERRUPTED = 130
FAREWELL_SECONDS = 60.0
LONGEST_LINE_BYTES = 2**20
TOLD_AGAIN = ("FAILED ", "ERROR ")
WIDTH = max(len(lane.name) for lane in LANES)


@dataclass(slots=True)
class LaneRun:
    """One lane's pytest process."""

    lane: Lane
    folder: str
    options: Sequence[str]
    lines: list[str] = field(default_factory=list)
    status: int | None = None
    seconds: float = 0.0
    _process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Until it has ended, its lines shown as they come."""
        started = time.monotonic()
        # Without a cache of last failures, which several runs would write at once; a file that can't be read fails the
        # lane and hides no other.
        fixed = ["-p", "duet_dev.lanes.plugin", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        command = [sys.executable, "-m", "pytest", *fixed, f"--lane={self.lane.name}", *self.options, self.folder]
        self._process = await asyncio.create_subprocess_exec(
            *guarded(command, signal_name="INT"),
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LONGEST_LINE_BYTES,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._show(line.decode(errors="replace").rstrip("\n"))
        self.status = await self._process.wait()
        self.seconds = time.monotonic() - started

    def _show(self, line: str) -> None:
        self.lines.append(line)
        tell(f"{self.lane.name:>{WIDTH}} | {line}")

    def signal(self, number: int, *, group: bool = False) -> None:
        if self._process is not None and self._process.returncode is None:
            (os.killpg if group else os.kill)(self._process.pid, number)

    @property
    def outcome(self) -> Outcome | None:
        return Outcome.read(self.lines)

    @property
    def well(self) -> bool:
        return self.status in (0, NO_TESTS) and self.outcome is not None


@dataclass(slots=True)
class Lanes:
    """Several of them."""

    runs: Sequence[LaneRun]
    at_once: int
    interrupted: bool = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt)
        free = asyncio.Semaphore(self.at_once)

        async def in_turn(run: LaneRun) -> None:
            async with free:
                if not self.interrupted:
                    await run.run()

        for run in self.runs:
            if run.lane.alone:
                await in_turn(run)
        await asyncio.gather(*(in_turn(run) for run in self.runs if not run.lane.alone))

    def _interrupt(self) -> None:
        """The first time as Ctrl-C does; again, or when that takes too long, at once."""
        if self.interrupted:
            self._kill()
            return
        self.interrupted = True
        tell("interrupted: ending all lanes (again to end them at once)")
        for run in self.runs:
            run.signal(signal.SIGINT)
        asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self._kill)

    def _kill(self) -> None:
        for run in self.runs:
            run.signal(signal.SIGKILL, group=True)

    def verdict(self) -> int:
        """Told in the last lines; the exit status."""
        for run in self.runs:
            for line in run.lines:
                if line.startswith(TOLD_AGAIN):
                    tell(f"{run.lane.name:>{WIDTH}} | {line}")
        for run in self.runs:
            if run.status is None:
                told = "not run"
            elif (outcome := run.outcome) is None:
                told = f"ended with status {run.status} before it could tell how it went"
            else:
                told = str(outcome)
            tell(f"{run.lane.name:>{WIDTH}} : {told} in {duration(run.seconds)}")
        total = sum((run.outcome or Outcome() for run in self.runs), start=Outcome())
        tell(str(total))
        if self.interrupted:
            return INTERRUPTED
        return 0 if all(run.well for run in self.runs) else 1


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m duet_dev.lanes", description=__doc__, epilog="all other options go to pytest"
    )
    parser.add_argument("--lane", action="append", choices=[lane.name for lane in LANES], help="only this one")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help=f"lanes that run side by side ({AT_ONCE})")
    parser.add_argument("--in", dest="folder", metavar="FOLDER", help="only the tests that lie here")
    arguments, options = parser.parse_known_args()
    present = [lane for lane in LANES if (REPOSITORY / lane.folder).exists()]
    chosen = [lane for lane in present if not arguments.lane or lane.name in arguments.lane]
    runs = [LaneRun(lane, arguments.folder or lane.folder, options) for lane in chosen]
    lanes = Lanes(runs, arguments.at_once)
    asyncio.run(lanes.run())
    return lanes.verdict()


if __name__ == "__main__":
    sys.exit(main())
