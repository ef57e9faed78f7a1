"""Which processes of this machine belong to something under test."""

import time
from pathlib import Path


def carrying(marker: str) -> list[str]:
    """The command lines of all processes with this text in their command line or environment."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            if marker.encode() in command or marker.encode() in (process / "environ").read_bytes():
                found.append(f"{process.name}: {command.replace(bytes(1), b' ').decode(errors='replace')[:200]}")
        except OSError:
            continue
    return found


def left_after(marker: str, *, seconds: float) -> list[str]:
    """What still carries the marker when nothing does any more, or when the time is up."""
    deadline = time.monotonic() + seconds
    while (left := carrying(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
