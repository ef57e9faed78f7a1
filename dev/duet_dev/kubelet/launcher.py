"""Turns the process it runs in into a container: dies with the kubelet, sees its own mounts, runs the command.

Run as a script with a JSON object as its argument. Reports a failure through the file descriptor `report`;
a successful exec closes that descriptor without a word. Imports nothing but the standard library, so that it
starts in a few milliseconds.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str | None, flags: int) -> None:
    encoded = kind.encode() if kind else None
    result = libc.mount(source.encode(), os.fsencode(target), encoded, flags, None)
    check(result, f"mount {source} on {target}")


class Tree:
    """The file tree that the container sees; missing mount points are added without touching the real folders."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._mirrors = scratch, 0
        self._bound: list[Path] = []
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS), "unshare")
        mount("none", Path("/"), None, MS_REC | MS_PRIVATE)
        mount("tmpfs", scratch, "tmpfs", 0)

    def bind(self, source: Path, target: Path, *, read_only: bool) -> None:
        target = Path(os.path.realpath(target))
        if not target.exists():
            self._add(target, folder=source.is_dir())
        mount(str(source), target, None, MS_BIND | MS_REC)
        self._bound.append(target)
        if read_only:
            inherited = os.statvfs(target).f_flag & ~MS_RDONLY & 0x0F
            mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | inherited)

    def _add(self, target: Path, *, folder: bool) -> None:
        """Make a mount point by showing, instead of the nearest folder that exists, a copy with room for more."""
        ancestor = next(parent for parent in target.parents if parent.exists())
        if not self._is_ours(ancestor):
            self._mirror(ancestor)
        (target if folder else target.parent).mkdir(parents=True, exist_ok=True)
        if not folder:
            target.touch()

    def _is_ours(self, folder: Path) -> bool:
        """A copy already, or inside a volume, where new folders belong into the volume itself."""
        copied = folder.stat().st_dev == self._scratch.stat().st_dev
        return copied or any(folder.is_relative_to(bound) for bound in self._bound)

    def _mirror(self, original: Path) -> None:
        """Put in the folder's place a folder in memory in which every entry is the real one."""
        copy = self._scratch / str(self._mirrors)
        self._mirrors += 1
        copy.mkdir()
        copy.chmod(original.stat().st_mode & 0o7777)
        # The entry that holds the scratch folder comes first, lest it contain what is mounted meanwhile.
        entries = sorted(original.iterdir(), key=lambda entry: not self._scratch.is_relative_to(entry))
        for entry in entries:
            place = copy / entry.name
            if entry.is_symlink():
                place.symlink_to(entry.readlink())
                continue
            if entry.is_dir():
                place.mkdir()
            else:
                place.touch()
            mount(str(entry), place, None, MS_BIND | MS_REC)
        if original == Path("/"):
            os.chroot(copy)
            os.chdir("/")
        else:
            mount(str(copy), original, None, MS_BIND | MS_REC)


def become(order: dict[str, Any]) -> None:
    os.set_inheritable(order["report"], False)
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
    if os.getppid() != order["parent"]:
        sys.exit("the kubelet is gone")
    if order["scratch"]:
        tree = Tree(Path(order["scratch"]))
        for bind in order["binds"]:
            tree.bind(Path(bind["source"]), Path(bind["target"]), read_only=bind["read_only"])
        socket.sethostname(order["hostname"])
    for ignored_by_python in signal.SIGPIPE, signal.SIGXFSZ:
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.nice(order["nicer_by"])
    os.chdir(order["directory"])
    command = order["command"]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise OSError(error.errno, f"exec: {command[0]!r}: {error.strerror}") from None


def main() -> None:
    order = json.loads(sys.argv[1])
    try:
        become(order)
    except Exception as error:  # whatever it is, the kubelet must hear of it
        os.write(order["report"], str(error).encode())
        sys.exit(128)


if __name__ == "__main__":
    main()
