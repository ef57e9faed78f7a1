"""Debian packages that the local cluster and its engines use: installed when root, else named with their command.

Invariant: nothing is installed that is there already, told by its command or library, so that other distributions
work too.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duet_dev.errors import DevError
from duet_dev.paths import DEBIAN_PACKAGES
from duet_dev.progress import announced

ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    shown_by: str
    """A command, or a shared library's name."""
    reason: str


def read_packages(path: Path = DEBIAN_PACKAGES) -> list[Package]:
    """The packages that the file lists; a DevError names a line that has no command, no library or no reason."""
    packages = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        words, _, reason = line.partition("#")
        parts = words.split()
        if len(parts) != 2 or not reason.strip():
            raise DevError(f"{path}:{number}: write `package command-or-library  # why it is needed`")
        name, shown_by = parts
        packages.append(Package(name, shown_by, reason.strip()))
    return packages


def missing_packages(packages: Sequence[Package]) -> list[Package]:
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{ADMIN_FOLDERS}"
    return [package for package in packages if not _is_there(package.shown_by, path)]


def _is_there(shown_by: str, path: str) -> bool:
    if ".so" not in shown_by:
        return shutil.which(shown_by, path=path) is not None
    try:
        ctypes.CDLL(shown_by)
    except OSError:
        return False
    return True


def ensure() -> None:
    """Everything in `dev/packages.txt` is there, or a DevError says what to run."""
    missing = missing_packages(read_packages())
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *(package.name for package in missing)]
    advice = f"missing on this machine; run: sudo {' '.join(command)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise DevError(f"{advice}\n" + "\n".join(f"  {package.name}: {package.reason}" for package in missing))
    with announced(f"installing {', '.join(package.name for package in missing)}"):
        for step in (["apt-get", "update"], command):
            result = subprocess.run(
                step, capture_output=True, text=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            )
    if result.returncode:
        raise DevError(f"{advice}\n{result.stderr.strip()[-1000:]}")
