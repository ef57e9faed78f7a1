"""What an engine's processes tell each other: a folder of small memory-mapped files, one writer each.

Invariant: a reader never waits for a writer nor a writer for a reader. Numbers have two places that take turns, and a
counter that says which is the present one: a writer that is held up in the middle disturbs nobody, and a reader that
sees the counter move reads again, so what is read was written together. A card tells who a process is, once.
"""

from __future__ import annotations

import atexit
import fcntl
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from duet_engine.protocol import ProcessInfo

BOARD_VARIABLE = "DUET_PLUGIN_BOARD"
CARD_SUFFIX = ".card"
SHARED_MEMORY = Path("/dev/shm")
PREFIX = "duet-"
OWNER = "owner"
COUNTER = struct.Struct("@Q")
"""In native form, which is stored at once."""

_claims: list[IO[str]] = []
"""Open files whose locks say that this process lives."""


class Numbers:
    """Named 64-bit floats in a shared file. One process writes, any number read."""

    def __init__(self, path: Path, names: Sequence[str], *, create: bool) -> None:
        self.names = tuple(names)
        self._values = struct.Struct(f"@{len(self.names)}d")
        size = COUNTER.size + 2 * self._values.size
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._written = self.version

    def write(self, values: Sequence[float]) -> None:
        """All values, in the order of the names."""
        self._values.pack_into(self._memory, self._place(self._written + 1), *values)
        self._written += 1
        COUNTER.pack_into(self._memory, 0, self._written)

    def read(self) -> tuple[float, ...]:
        """What was written last, whole; zeros before the first."""
        while True:
            before = self.version
            values = self._values.unpack_from(self._memory, self._place(before))
            if self.version == before:
                return values

    @property
    def version(self) -> int:
        """Another number after each write."""
        (counter,) = COUNTER.unpack_from(self._memory)
        return int(counter)

    def _place(self, version: int) -> int:
        return COUNTER.size + version % 2 * self._values.size


def own_board() -> Path:
    """This engine's folder: made by its first process, handed to the others by the environment."""
    known = os.environ.get(BOARD_VARIABLE)
    if known and Path(known).is_dir():
        return Path(known)
    place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    remove_abandoned(place)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    _claim(folder)
    os.environ[BOARD_VARIABLE] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_abandoned(place: Path) -> None:
    """Take away the boards of engines that were killed: nobody holds their lock any more."""
    for owner in place.glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError), owner.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)


def _claim(folder: Path) -> None:
    """Hold the board's lock as long as this process lives. It is there only once it is held."""
    draft = folder / f"{OWNER}.draft"
    held = draft.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    draft.rename(folder / OWNER)
    _claims.append(held)


def pin_card(board: Path, card: ProcessInfo) -> None:
    """Say who this process is; whole or not at all."""
    path = board / f"{card.name}-{card.rank}{CARD_SUFFIX}"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(card.write())
    draft.replace(path)


def cards(board: Path) -> list[ProcessInfo]:
    """Everybody who has said who they are."""
    return [ProcessInfo.read(path.read_bytes()) for path in sorted(board.glob(f"*{CARD_SUFFIX}"))]
