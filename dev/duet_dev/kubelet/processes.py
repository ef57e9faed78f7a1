"""Processes in sessions of their own, waited for without threads and ended with everything they started."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from duet_dev.kubelet import reaper

MARKER = "DUET_KUBELET"  # in the environment of every process under a kubelet
CONTAINER_MARKER = "DUET_CONTAINER"  # in that of every process of one container's one run


class Process:
    """A child process; when it ends, what is left of its group ends with it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        new_session: bool = True,
        pass_descriptors: Sequence[int] = (),
    ) -> None:
        self._child = subprocess.Popen(
            command,
            env=dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=new_session,
            pass_fds=pass_descriptors,
        )
        self.pid = self._child.pid
        self._loop = asyncio.get_running_loop()
        self._exit_code: asyncio.Future[int] = self._loop.create_future()
        self._descriptor = os.pidfd_open(self.pid)
        self._loop.add_reader(self._descriptor, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.kill()  # before the exit is collected the group's number can't belong to anyone else
        code = self._child.wait()
        if not self._exit_code.done():
            self._exit_code.set_result(code if code >= 0 else 128 - code)

    @property
    def running(self) -> bool:
        return self._child.returncode is None

    async def wait(self) -> int:
        """The exit code, 128 + signal number for a death by signal."""
        return await asyncio.shield(self._exit_code)

    def terminate(self) -> None:
        """SIGTERM to the main process alone, as a container runtime sends it to the container's first process."""
        if self.running:
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._child.send_signal(signal.SIGKILL)


class Guardian:
    """A process that ends everything with the marker once this process is gone, however it went."""

    def __init__(self, marker: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, marker],
            stdin=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Have it end everything now, and wait for that."""
        self._child.communicate()


def end_leftovers(root: Path, marker: str) -> None:
    """End what an earlier kubelet with this root left behind; remember the marker for the next one."""
    root.mkdir(parents=True, exist_ok=True)
    marker_file = root / "marker"
    with contextlib.suppress(FileNotFoundError):
        reaper.end_all(marker_file.read_text())
    marker_file.write_text(marker)
