"""Several gateway processes on the same ports, one for each core that is to be used.

Invariant: they live and end together. A signal reaches all; when one ends by itself the others finish what they have
and the whole says that it failed, because a part that is missing would answer for nobody. When the one that started
them is killed they finish what they have and end, too.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

MEMBERSHIP_VARIABLE = "DUET_GATEWAY_PROCESS"
"""`INDEX/COUNT:FOLDER`, set for each process by the one that starts them."""
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Membership:
    """Which process of how many this is, and the folder with their sockets."""

    folder: Path
    index: int
    count: int

    def socket(self, index: int) -> Path:
        return self.folder / f"{index}.sock"

    def others(self) -> list[int]:
        return [index for index in range(self.count) if index != self.index]


ALONE = Membership(Path("/nonexistent"), 0, 1)


def membership() -> Membership:
    """Which process of a group this is."""
    text = os.environ.get(MEMBERSHIP_VARIABLE)
    if not text:
        return ALONE
    place, _, folder = text.partition(":")
    index, _, count = place.partition("/")
    return Membership(Path(folder), int(index), int(count))


def run_group(count: int) -> int:
    """Run this command line so many times, and stay until all have ended; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="duet-gateway-") as folder:
        children = [_start(index, count, folder) for index in range(count)]
        told: list[int] = []

        def tell_all(number: int, _: object = None) -> None:
            told.append(number)
            for child in children:
                child.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, tell_all)
        while all(child.poll() is None for child in children):
            time.sleep(POLL_SECONDS)
        ended_by_itself = not told
        if ended_by_itself:
            log.critical("a process of the gateway ended by itself; the others finish what they have")
            tell_all(signal.SIGTERM)
        statuses = [child.wait() for child in children]
    return 1 if ended_by_itself or any(statuses) else 0


def _start(index: int, count: int, folder: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, MEMBERSHIP_VARIABLE: f"{index}/{count}:{folder}"}
    return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, stdin=subprocess.PIPE)


def end_with_the_group() -> None:
    """Called in each process of a group: SIGTERM to itself once the one that started it is gone."""

    def wait() -> None:
        # Nothing is ever written there: it ends with the process that holds the other end.
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end with the group", daemon=True).start()
