"""Build the cluster's Go binaries once, from the pinned module in `dev/tools`, into the cache.

Invariant: a binary lies at its final path only when it is whole. Its folder is named after a digest of the module's
go.mod and go.sum and of the build flags, so a changed pin is another folder and an unchanged one is never rebuilt. All
are of one module, so that what several of them need is compiled once: etcd and Helm are of releases whose own
requirements leave Kubernetes' pins as they are where it matters (CEL, server-side apply, OpenAPI).
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from duet_dev.errors import DevError
from duet_dev.paths import TOOLS, cache_root
from duet_dev.progress import JobProgress, say
from duet_dev.toolchain import find_go, required_version

COMMON_FLAGS = ("-trimpath", "-buildvcs=false", "-mod=readonly", "-gcflags=all=-dwarf=false")
"""No debug information is made that the linker would drop."""
COMPILER_ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOGC": "400"}
"""The compiler collects its garbage seldom: less CPU for more memory."""
PARTIAL = ".partial"
"""Where binaries lie until all of them are whole."""
VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True, slots=True)
class Tool:
    """One binary and which package it is."""

    name: str
    package: str

    @property
    def built_as(self) -> str:
        """What `go build` calls it: the last element of its path that is no major version."""
        return next(part for part in reversed(self.package.split("/")) if not re.fullmatch(r"v\d+", part))


def _kubernetes(name: str) -> Tool:
    return Tool(name, f"k8s.io/kubernetes/cmd/{name}")


ETCD = Tool("etcd", "go.etcd.io/etcd/server/v3")
API_SERVER = _kubernetes("kube-apiserver")
CONTROLLER_MANAGER = _kubernetes("kube-controller-manager")
SCHEDULER = _kubernetes("kube-scheduler")
KUBECTL = _kubernetes("kubectl")
HELM = Tool("helm", "helm.sh/helm/v4/cmd/helm")

ALL_TOOLS = (ETCD, API_SERVER, KUBECTL, CONTROLLER_MANAGER, SCHEDULER, HELM)
PARTS: Mapping[str, tuple[Tool, ...]] = {
    "all": ALL_TOOLS,
    "apiserver": (ETCD, API_SERVER, KUBECTL),
    "controllers": (ETCD, API_SERVER, KUBECTL, CONTROLLER_MANAGER),
}


def binary_path(tool: Tool) -> Path:
    """Where the tool's binary lies, or will lie once it is built."""
    digest = module_digest(TOOLS, flags=(*COMMON_FLAGS, linker_flags(TOOLS), platform.machine()))
    return cache_root() / "bin" / digest / tool.name


def missing(tools: Iterable[Tool]) -> list[Tool]:
    return [tool for tool in tools if not binary_path(tool).is_file()]


def module_digest(module: Path, *, flags: Iterable[str]) -> str:
    """Short digest of what decides a module's binaries."""
    content = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        content.update((module / name).read_bytes() + b"\0")
    content.update("\0".join(flags).encode())
    return content.hexdigest()[:12]


def linker_flags(module: Path) -> str:
    """Strip, and stamp Kubernetes' version: without it `kubeVersion` in a Helm chart is never satisfied."""
    found = re.search(r"^\s*k8s\.io/kubernetes v((\d+)\.(\d+)\.\S+)", (module / "go.mod").read_text(), re.MULTILINE)
    if not found:
        return "-s -w"
    version, major, minor = found.groups()
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(["-s -w", *(f"-X {VERSION_PACKAGE}.{name}={value}" for name, value in stamps.items())])


def build(tools: Iterable[Tool] = ALL_TOOLS) -> None:
    """Build what is missing; returns at once when nothing is."""
    wanted = list(tools)
    if not missing(wanted):
        return
    with _build_lock():
        # What another build made while this one waited for the lock is not built again.
        todo = missing(wanted)
        if not todo:
            return
        _build_all(find_go(required_version(TOOLS)), todo)


def _build_all(go: Path, todo: list[Tool]) -> None:
    # The standard library needs no module: it is compiled while the network is what the build waits for.
    with _meanwhile([str(go), "build", *_flags(), "std"]), JobProgress("fetching the modules") as progress:
        packages = _packages_to_compile(go, todo, progress)
    say(f"to build: {', '.join(tool.name for tool in todo)}")
    partial = binary_path(todo[0]).parent / PARTIAL
    partial.mkdir(parents=True)
    # In one command: while one binary is linked, on one core, the others' packages are compiled.
    command = [str(go), "build", "-v", "-p", str(_cores()), *_flags(), "-o", f"{partial}/"]
    with JobProgress("building the binaries", total=packages) as progress:
        for line in _go_lines([*command, *(tool.package for tool in todo)]):
            if not line.startswith("go: "):
                progress.advance(line)
    for tool in todo:
        (partial / tool.built_as).replace(binary_path(tool))
    partial.rmdir()


@contextmanager
def _build_lock() -> Iterator[None]:
    folder = cache_root() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running; waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Under the lock any partial output is of a build that was killed.
        for partial in folder.glob(f"*/{PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)
        yield


def _packages_to_compile(go: Path, tools: list[Tool], progress: JobProgress) -> int:
    """How many packages the build cache lacks; fetches the modules' sources on the way."""
    template = '{{if ne .StaleReason "not installed but available in build cache"}}{{.ImportPath}}{{end}}'
    packages = [tool.package for tool in tools]
    found = 0
    for line in _go_lines([str(go), "list", "-deps", "-f", template, *_flags(), *packages]):
        if line.startswith("go: "):
            progress.describe(line.removeprefix("go: "))
        elif line:
            found += 1
    return found


def _flags() -> list[str]:
    return [*COMMON_FLAGS, "-ldflags", linker_flags(TOOLS)]


@contextmanager
def _meanwhile(command: list[str]) -> Iterator[None]:
    """A `go` command whose results go to the build cache; why it failed, a later command that needs them says."""
    process = _start(command, stdout=subprocess.DEVNULL)
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGINT)
        raise
    finally:
        process.wait()


def _go_lines(command: list[str]) -> Iterator[str]:
    """What a `go` command prints, line by line; ends it when the reader stops, raises when it fails."""
    process = _start(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    recent: list[str] = []
    try:
        for raw in process.stdout:
            line = raw.rstrip()
            recent = [*recent[-20:], line]
            yield line
        if process.wait():
            raise DevError(f"`{' '.join(command[:2])}` failed:\n" + "\n".join(recent))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()
        process.stdout.close()


def _start(command: list[str], *, stdout: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "--", *command],
        cwd=TOOLS,
        env={**os.environ, **COMPILER_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
