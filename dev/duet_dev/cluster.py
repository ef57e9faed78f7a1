"""A local cluster as seen from outside: start it, use it, end it.

Invariant: a cluster is alive exactly as long as its lock file is locked; the lock is inherited by the supervisor and
by nothing below it. The one who brought a cluster up holds its lifeline: when that process dies, the cluster ends.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from duet_dev import build, control, credentials, isolation
from duet_dev.components import HOST, Files
from duet_dev.config import CONFIG_FILE, WHOLE_CLUSTER, ClusterConfig
from duet_dev.errors import DevError
from duet_dev.paths import cache_root, python_path
from duet_dev.processes import MARKER_VARIABLE
from duet_dev.progress import say
from duet_dev.supervisor import API_SERVER_TARGET

STOP_TIMEOUT_SECONDS = 15.0
POLL_SECONDS = 0.05
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


def default_root(name: str) -> Path:
    return cache_root() / "cluster" / name


def tools_for(components: Iterable[str]) -> list[build.Tool]:
    """The binaries that these components and their users need."""
    wanted = set(components)
    extra = {build.KUBECTL.name} | ({build.HELM.name} if wanted == set(WHOLE_CLUSTER) else set())
    return [tool for tool in build.ALL_TOOLS if tool.name in wanted | extra]


class Cluster:
    """One cluster in one folder. As a context manager: up on entry, down on exit."""

    def __init__(self, config: ClusterConfig, root: Path | None = None) -> None:
        self.config = config
        self.root = (root or default_root(config.name)).resolve()
        self.files = Files(self.root)
        self.ready_seconds: Mapping[str, float] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def attached(cls, root: Path) -> Self:
        """The cluster that already lies in this folder, running or not."""
        if not (root / CONFIG_FILE).exists():
            raise DevError(f"no cluster lies in {root}")
        return cls(ClusterConfig.read(root), root)

    # Starting and ending

    def up(self) -> None:
        """Start everything; returns when it is ready, raises with the reason when that fails."""
        missing = [tool.name for tool in build.missing(tools_for(self.config.components))]
        if missing:
            raise DevError(f"not built yet: {', '.join(missing)}; run `python -m duet_dev build`")
        chosen = self._chosen_isolation()
        if chosen.warning:
            say(f"warning: {chosen.warning}")
        lock = self._prepare_root()
        try:
            self._process = self._start_supervisor(chosen, lock)
        finally:
            os.close(lock)
        try:
            self._wait_until_ready(self._process)
            self._write_host_kubeconfig(private=bool(chosen.unshare))
        except BaseException:
            self.down()
            raise

    def detach(self) -> None:
        """Let the cluster live on when this process ends."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(b"detach\n")
        self._process.stdin.close()
        self._process = None

    def wait(self) -> None:
        """Until the cluster ends by itself, or another process takes it down."""
        if self._process:
            self._process.wait()

    def down(self) -> None:
        """End the cluster and everything in it; does nothing when none runs."""
        with contextlib.suppress(DevError):
            control.request(self.files.control_socket, {"do": "stop"})
        if self._process:
            self._end_own(self._process)
            self._process = None
        if not self._ended_within(STOP_TIMEOUT_SECONDS):
            with contextlib.suppress(DevError, ProcessLookupError):
                os.kill(control.server_pid(self.files.control_socket), signal.SIGKILL)
            if not self._ended_within(STOP_TIMEOUT_SECONDS):
                raise DevError(f"the cluster in {self.root} doesn't end; something still locks {self.files.lock}")

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # Using it from the host

    @property
    def running(self) -> bool:
        return self.files.lock.exists() and not self._ended_within(0)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's way in from the host."""
        return self.root / "kubeconfig"

    @property
    def url(self) -> str:
        return str(self._kubeconfig_document()["clusters"][0]["cluster"]["server"])

    @property
    def token(self) -> str:
        return str(self._kubeconfig_document()["users"][0]["user"]["token"])

    @property
    def ca(self) -> Path:
        return self.files.certificate_authority

    @property
    def logs(self) -> Path:
        return self.files.logs

    def status(self) -> dict[str, Any]:
        return control.request(self.files.control_socket, {"do": "status"})

    def forward(self, target: str, *, host_port: int = 0) -> int:
        """Open a port of the host's loopback address for `service/NAMESPACE/NAME:PORT`; returns its number."""
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, host_port))
            except OSError as error:
                raise DevError(f"port {host_port} of {HOST}: {error.strerror}; choose another") from error
            listener.listen(128)
            control.request(self.files.control_socket, {"do": "forward", "target": target}, (listener,))
            port: int = listener.getsockname()[1]
        return port

    def signal(self, component: str, number: int) -> None:
        """Send a signal to a component and its children: a crash, a pause. What ends is started again."""
        control.request(self.files.control_socket, {"do": "signal", "component": component, "signal": number})

    def kubectl(
        self, *arguments: str, input: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl from the host; with `check` a failure raises with what it said."""
        command = [str(build.binary_path(build.KUBECTL)), f"--kubeconfig={self.kubeconfig}", *arguments]
        result = subprocess.run(command, input=input, capture_output=True, text=True)
        if check and result.returncode:
            raise DevError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result

    # Using it from inside

    @property
    def inner_kubeconfig(self) -> Path:
        """The administrator's way in from inside the cluster's namespaces."""
        return self.files.kubeconfig(credentials.ADMIN)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside the cluster's namespaces."""
        pid = control.server_pid(self.files.control_socket)
        return isolation.BY_NAME[self.status()["isolation"]].entered(pid, command)

    def environment(self, *, inside: bool) -> dict[str, str]:
        """This environment, with KUBECONFIG set and the built kubectl and helm first on the PATH."""
        folders = [str(build.binary_path(tool).parent) for tool in (build.KUBECTL, build.HELM)]
        path = ":".join([*folders, f"{sys.prefix}/bin", os.environ.get("PATH", "")])
        kubeconfig = self.inner_kubeconfig if inside else self.kubeconfig
        # Neither a cluster's private network nor loopback is behind the machine's proxy.
        direct = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_VARIABLES}
        return {**direct, "PATH": path, "KUBECONFIG": str(kubeconfig)}

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
        """Run a command inside; options as for `subprocess.run`, text by default."""
        options = {"env": self.environment(inside=True), "text": True, **options}
        return subprocess.run(self.inside(command), **options)

    # How it is done

    def _chosen_isolation(self) -> isolation.Isolation:
        if self.config.isolation == "auto":
            return isolation.best()
        return isolation.BY_NAME[self.config.isolation]

    def _prepare_root(self) -> int:
        """An empty folder with only the configuration in it; returns the lock on it."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        entries = [entry for entry in self.root.iterdir() if entry != self.files.lock]
        if entries and not (self.root / CONFIG_FILE).exists():
            raise DevError(f"{self.root} holds files that no cluster put there; choose an empty folder")
        lock = os.open(self.files.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise DevError(f"a cluster already runs in {self.root}; end it with `down` or choose a name") from None
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self.files.logs.mkdir()
        self.config.write(self.root)
        return lock

    def _start_supervisor(self, chosen: isolation.Isolation, lock: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "duet_dev.supervisor"]
        arguments = ["--root", str(self.root), "--isolation", chosen.name]
        with self._supervisor_log.open("wb") as log:
            return subprocess.Popen(
                chosen.wrapped([*command, *arguments]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": python_path(), MARKER_VARIABLE: str(self.root)},
            )

    @property
    def _supervisor_log(self) -> Path:
        return self.files.logs / "supervisor.log"

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        output: IO[bytes] | None = process.stdout
        assert output is not None
        with output:
            line = output.readline()
        if not line:
            reason = self._supervisor_log.read_text(errors="replace").strip()
            raise DevError(f"the cluster didn't start (logs in {self.logs}):\n{reason[-3000:]}")
        self.ready_seconds = json.loads(line)["ready_seconds"]

    def _write_host_kubeconfig(self, *, private: bool) -> None:
        inner = json.loads(self.inner_kubeconfig.read_text())
        url = inner["clusters"][0]["cluster"]["server"]
        if private:
            url = f"https://{HOST}:{self.forward(API_SERVER_TARGET)}"
        credentials.write_kubeconfig(
            self.kubeconfig,
            url=url,
            certificate_authority=self.files.certificate_authority.read_bytes(),
            user=credentials.ADMIN,
            token=inner["users"][0]["user"]["token"],
        )

    def _kubeconfig_document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.kubeconfig.read_text())
        return document

    def _end_own(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(FileNotFoundError), self.files.lock.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        return False
                    time.sleep(POLL_SECONDS)
                    continue
            return True
