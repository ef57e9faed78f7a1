"""The real SGLang on a machine without a GPU: official wheels by hash, a driver stub, tiny models, in the cache.

Invariant: each part lies in a folder named after a digest of what it is made from and counts only once its stamp is
there, so an interrupted run goes on where it stopped and a finished one is never made again. The project itself is not
installed in it: whoever starts an engine gives it the sources of its own checkout, so that several share one cache.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from duet_dev.errors import DevError
from duet_dev.paths import PACKAGE_PARENT, REPOSITORY, REQUIREMENTS, cache_root
from duet_dev.progress import JobProgress, announced

LOCKED = REQUIREMENTS / "engine.txt"
SOURCES = PACKAGE_PARENT / "engine"
STUB_SOURCE = SOURCES / "driver_stub.c"
MODELS_SOURCE = SOURCES / "tiny_models.py"
STAMP = ".complete"
MODELS = ("tiny-llama", "tiny-qwen3")
NEEDED_GIGABYTES = 12
"""The unpacked wheels, and room for the largest of them while it is fetched."""


def engine_python() -> Path:
    """The interpreter that has SGLang."""
    return _packages_folder() / "bin" / "python"


def stub_folder() -> Path:
    """What belongs on LD_LIBRARY_PATH where there is no driver."""
    return _folder("stub", STUB_SOURCE.read_bytes(), platform.machine().encode())


def model_folder(name: str) -> Path:
    """A tiny model's files."""
    return _models_folder() / name


def ready() -> bool:
    """Whether everything is there."""
    return all((folder / STAMP).exists() for folder in (_packages_folder(), stub_folder(), _models_folder()))


def environment() -> dict[str, str]:
    """What a process needs beside the usual to run SGLang here, with this checkout's plugin."""
    return {
        "PYTHONPATH": f"{REPOSITORY / 'engine'}:{_entry_points_folder()}",
        "LD_LIBRARY_PATH": str(stub_folder()),
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_CPU_OMP_THREADS_BIND": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "SGLANG_IS_IN_CI": "0",
    }


def command() -> list[str]:
    """`duet-engine` with all of that, for whoever can only start a command."""
    variables = [f"{name}={value}" for name, value in environment().items()]
    return ["env", *variables, str(engine_python()), "-m", "duet_engine.launch"]


def ensure() -> None:
    """Make what is missing."""
    if ready():
        return
    with _lock():
        _make(_packages_folder(), _install_packages)
        _make(stub_folder(), _compile_stub)
        _make(_models_folder(), _make_models)


def _packages_folder() -> Path:
    return _folder("python", LOCKED.read_bytes(), sys.version.encode(), platform.machine().encode())


def _models_folder() -> Path:
    return _folder("models", MODELS_SOURCE.read_bytes(), LOCKED.read_bytes())


def _folder(name: str, *made_from: bytes) -> Path:
    digest = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:12]
    return cache_root() / "engine" / f"{name}-{digest}"


def _make(folder: Path, work: Callable[[Path], None]) -> None:
    if (folder / STAMP).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    work(folder)
    (folder / STAMP).touch()


@contextmanager
def _lock() -> Iterator[None]:
    folder = cache_root() / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install_packages(folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEEDED_GIGABYTES:
        raise DevError(
            f"{folder} needs {NEEDED_GIGABYTES} GB for SGLang's wheels, and {free:.0f} GB are free; "
            "make room, set DUET_CACHE to a larger disk, or leave these tests out (`make test WITHOUT_ENGINE=1`)"
        )
    uv = f"{sys.prefix}/bin/uv"
    packages = len(re.findall(r"^\S+==", LOCKED.read_text(), re.MULTILINE))
    with JobProgress(f"installing SGLang's {packages} packages") as progress:
        if not (folder / "bin" / "python").exists():
            _run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)], progress)
        command = [uv, "pip", "sync", "--python", str(engine_python()), "--require-hashes", "--only-binary", ":all:"]
        # Here rather than in the first start of a server, which would take minutes.
        command += ["--compile-bytecode"]
        _run([*command, str(LOCKED)], progress)


def _compile_stub(folder: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise DevError("no C compiler: run `apt-get install gcc`")
    # Without the C library: no headers are needed, and nothing can be called that isn't in the file.
    options = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    with announced("building the driver stub"):
        _check([compiler, *options, str(STUB_SOURCE)])


def _make_models(folder: Path) -> None:
    with announced("making the tiny models"):
        _check([str(engine_python()), str(MODELS_SOURCE), str(folder)], {**os.environ, **environment()})


def _entry_points_folder() -> Path:
    """Metadata that tells SGLang of this checkout's plugin, as an installed package's would."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = {"console_scripts": project["scripts"], **project.get("entry-points", {})}
    lines = [line for name, entries in groups.items() for line in _section(name, entries)]
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    folder = _folder("metadata", metadata.encode(), "\n".join(lines).encode())
    if not (folder / STAMP).exists():
        information = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        information.mkdir(parents=True, exist_ok=True)
        (information / "METADATA").write_text(metadata)
        (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
        (folder / STAMP).touch()
    return folder


def _section(name: str, entries: dict[str, str]) -> list[str]:
    return [f"[{name}]", *(f"{key} = {value}" for key, value in entries.items())]


def _check(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise DevError(f"`{Path(command[0]).name} {' '.join(command[1:3])} …` failed:\n{result.stderr.strip()[-2000:]}")


def _run(command: Sequence[str], progress: JobProgress) -> None:
    """A long command whose lines tell how far it is."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    recent: list[str] = []
    for line in process.stdout:
        recent = [*recent[-20:], line.rstrip()]
        progress.describe(line.strip())
    process.stdout.close()
    if process.wait():
        raise DevError(f"`{Path(command[0]).name} {' '.join(command[1:3])}` failed:\n" + "\n".join(recent))
