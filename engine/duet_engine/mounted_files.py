"""Files that somebody else replaces while this process runs: projected tokens, mounted ConfigMaps.

Invariant: what is given is the file as it is now; a file that is gone or can't be read any more leaves what was read
last in force, and that is said once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Content = TypeVar("Content")

log = logging.getLogger(__name__)


class MountedFile(Generic[Content]):
    """One file, read again when it is another one than before."""

    def __init__(self, path: Path, read: Callable[[bytes], Content]) -> None:
        self.path = path
        self._read = read
        self._seen: tuple[int, int, int] | None = None
        """Which file was read last, whether it could be used or not."""
        self._content: Content | None = None
        self._problem: OSError | ValueError | None = None

    def content(self) -> Content:
        """What it says now, or said when it could last be read.

        Raises:
            OSError, ValueError: it could never be read.
        """
        try:
            # A kubelet swaps a link above the file: this follows it, and sees another inode.
            status = self.path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._seen = seen
                self._content = self._read(self.path.read_bytes())
                self._problem = None
        except (OSError, ValueError) as error:
            self._complain(error)
        if self._content is None:
            assert self._problem is not None
            raise self._problem
        return self._content

    def _complain(self, error: OSError | ValueError) -> None:
        if self._problem is None:
            kept = "" if self._content is None else "; what it said before stays in force"
            log.warning("%s can't be used: %s%s", self.path, error, kept)
        self._problem = error


def token_file(path: Path) -> MountedFile[str]:
    """A file that holds one token."""
    return MountedFile(path, _token)


def bearer(token: str) -> dict[str, str]:
    """Headers that present a token."""
    return {"Authorization": f"Bearer {token}"}


def no_credentials() -> dict[str, str]:
    """Headers of a caller who needs to prove nothing."""
    return {}


def presented(path: Path | None) -> Callable[[], dict[str, str]]:
    """What makes the headers of each call, with the token that the file holds then.

    Raises:
        OSError, ValueError: there is no token in it.
    """
    if path is None:
        return no_credentials
    file = token_file(path)
    file.content()
    return lambda: bearer(file.content())


def _token(content: bytes) -> str:
    token = content.decode("ascii").strip()
    if not token or any(character.isspace() for character in token):
        raise ValueError("it must hold one token and nothing else")
    return token
