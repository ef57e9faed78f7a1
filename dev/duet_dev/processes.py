"""Child processes that can't outlive their parent.

Invariant: a child is killed by the kernel when its parent dies (parent-death signal, checked against the parent's
id so that a parent that died in between doesn't matter either), and it is spawned from the main thread only: the
kernel ties the signal to the spawning thread.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARKER_VARIABLE = "DUET_DEV_CLUSTER"
RESTART_DELAY_SECONDS = 1.0
STOP_GRACE_SECONDS = 5.0

log = logging.getLogger(__name__)


def guarded(command: Sequence[str], *, signal_name: str = "KILL") -> list[str]:
    """The command such that it dies with this process, of this signal."""
    check = '[ "$PPID" = "$1" ] && shift && exec "$@"'
    return ["setpriv", "--pdeathsig", signal_name, "--", "sh", "-c", check, "sh", str(os.getpid()), *command]


@dataclass(slots=True)
class Child:
    """One component's process, in a session of its own, with its output in a log file."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    restarts: int = 0
    started: float = 0.0
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def exit_status(self) -> int | None:
        return self._process.returncode if self._process else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        self.started = time.monotonic()
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(self.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.environment),
                start_new_session=True,
            )

    async def keep_running(self) -> None:
        """Restart the process whenever it ends; until cancelled."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            log.warning("%s ended with status %d; starting it again", self.name, status)
            await asyncio.sleep(RESTART_DELAY_SECONDS)
            self.restarts += 1
            await self.start()

    def signal(self, number: int) -> None:
        """To the process's whole group: its helpers too."""
        if self.running and self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def stop(self, *, gently: bool) -> None:
        """End it: SIGTERM and a grace where that has a use, else SIGKILL at once."""
        if not self._process:
            return
        if gently:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_GRACE_SECONDS)
        self.signal(signal.SIGKILL)
        await self._process.wait()

    def log_tail(self, characters: int = 2000) -> str:
        return self.log.read_text(errors="replace")[-characters:].strip() if self.log.exists() else ""
