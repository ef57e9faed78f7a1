"""What surrounds a pod's processes: address, names, volumes, mounts, and how a command enters it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from duet_dev.kubeapi import Api, JsonObject
from duet_dev.kubelet import environment, images, launcher, names
from duet_dev.kubelet.claims import CLAIMS
from duet_dev.kubelet.config import Config
from duet_dev.kubelet.problems import CannotStart, StartError
from duet_dev.kubelet.processes import CONTAINER_MARKER, MARKER, Process
from duet_dev.kubelet.sources import PodSources
from duet_dev.kubelet.volumes import Volumes

TIMED_OUT = 124


@dataclass(frozen=True, slots=True)
class Bind:
    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything needed to start a container's process."""

    command: list[str]
    env: dict[str, str]
    binds: list[Bind]
    directory: str
    nice: int
    delay_seconds: float


def nicer_by(launch: Launch) -> int:
    """What takes a process from the kubelet's priority to the image's; a higher one than its own it can't give."""
    return max(0, launch.nice - os.getpriority(os.PRIO_PROCESS, 0))


class Sandbox:
    """One pod's surroundings, under `folder`."""

    def __init__(self, *, api: Api, config: Config, sources: PodSources, root: Path, address: str, run: str) -> None:
        self.api, self.config, self.sources, self.address, self._run = api, config, sources, address, run
        self.uid: str = sources.pod["metadata"]["uid"]
        self.folder = root / "pods" / self.uid
        self.folder.mkdir(parents=True, exist_ok=True)
        self.volumes = Volumes(sources=sources, folder=self.folder / "volumes", claims_folder=root / CLAIMS)
        self._services: dict[str, str] = {}

    async def prepare(self) -> None:
        """The volumes, the name files and what the container's environments have in common."""
        await self.volumes.prepare()
        names.write(self.folder, pod=self.sources.pod, address=self.address, config=self.config)
        if self.sources.pod["spec"].get("enableServiceLinks", True):
            listing = await self.api.get(f"/api/v1/namespaces/{self.sources.namespace}/services")
            self._services = environment.of_services(listing["items"])

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    async def plan(self, container: JsonObject, *, devices: dict[str, str]) -> Launch:
        """How to start the container; CannotStart while something that it needs is absent."""
        image = images.find(container["image"], self.config.images)
        if image is None:
            known = ", ".join(sorted(self.config.images)) or "none"
            raise CannotStart(
                "ErrImagePull",
                f'failed to pull image "{container["image"]}": no local command stands for it (known: {known})',
            )
        base = {**self._base_environment(container), **devices}
        env = await environment.of_container(container, base=base, sources=self.sources)
        if not self.config.mounts:
            env = self._with_real_paths(container, env)
        words = container.get("command") or image.command
        command = [environment.expand(word, env) for word in (*words, *container.get("args", []))]
        if not command:
            raise CannotStart("CreateContainerError", "no command specified")
        return Launch(
            command=command,
            env=env,
            binds=self._binds(container, env),
            directory=container.get("workingDir", str(self.folder)),
            nice=image.nice,
            delay_seconds=image.start_delay_seconds,
        )

    def _base_environment(self, container: JsonObject) -> dict[str, str]:
        server = urlsplit(self.api.url)
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "HOSTNAME": self.sources.pod["metadata"]["name"],
            **self.config.env,
            **self._services,
            "KUBERNETES_SERVICE_HOST": server.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(server.port or 443),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(server.port or 443),
            MARKER: self._run,
            CONTAINER_MARKER: f"{self.uid}/{container['name']}",
        }
        if not self.config.mounts:
            for name, path in self.volumes.paths.items():
                variables["VOLUME_" + name.upper().replace("-", "_")] = str(path)
            if kubeconfig := self._write_kubeconfig():
                variables["KUBECONFIG"] = kubeconfig
        return variables

    def _with_real_paths(self, container: JsonObject, env: dict[str, str]) -> dict[str, str]:
        """Where nothing can be mounted, a variable that names a file in a volume names the real one."""
        places = {mount["mountPath"]: self.volumes.paths[mount["name"]] for mount in container.get("volumeMounts", [])}
        return {
            name: next(
                (f"{real}{value.removeprefix(path)}" for path, real in places.items() if value.startswith(f"{path}/")),
                value,
            )
            for name, value in env.items()
        }

    def _write_kubeconfig(self) -> str | None:
        """Where nothing can be mounted, a kubeconfig takes the place of the service account's folder."""
        for volume in self.volumes.tokens:
            path = self.folder / "kubeconfig"
            authority = self.folder / "ca.crt"
            authority.write_text(self.api.authority)
            cluster = {"server": self.api.url, "certificate-authority": str(authority)}
            context = {"cluster": "pod", "user": "pod", "namespace": self.sources.namespace}
            document = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "pod",
                "clusters": [{"name": "pod", "cluster": cluster}],
                "users": [{"name": "pod", "user": {"tokenFile": str(self.volumes.paths[volume] / "token")}}],
                "contexts": [{"name": "pod", "context": context}],
            }
            path.write_text(json.dumps(document))
            return str(path)
        return None

    def _binds(self, container: JsonObject, env: dict[str, str]) -> list[Bind]:
        if not self.config.mounts:
            return []
        binds = [Bind(str(self.folder / name), path, False) for name, path in names.MOUNTED.items()]
        for mount in sorted(container.get("volumeMounts", []), key=lambda m: m["mountPath"].count("/")):
            source = self.volumes.paths[mount["name"]]
            part = environment.expand(mount.get("subPathExpr", mount.get("subPath", "")), env)
            if part:
                source = source / part
                if not source.exists():
                    source.mkdir(parents=True)
            binds.append(Bind(str(source), mount["mountPath"], mount.get("readOnly", False)))
        return binds

    async def start(self, launch: Launch, *, output: IO[bytes]) -> Process:
        """Start the process and wait until its command runs; StartError with the launcher's words if it can't."""
        reader, writer = os.pipe()
        scratch = self.folder / "mounts"
        scratch.mkdir(exist_ok=True)
        order = {
            "parent": os.getpid(),
            "report": writer,
            "scratch": str(scratch) if self.config.mounts else None,
            "binds": [{"source": b.source, "target": b.target, "read_only": b.read_only} for b in launch.binds],
            "hostname": self.sources.pod["spec"].get("hostname") or self.sources.pod["metadata"]["name"],
            "nicer_by": nicer_by(launch),
            "directory": launch.directory,
            "command": launch.command,
        }
        try:
            process = Process(
                [sys.executable, "-I", "-S", launcher.__file__, json.dumps(order)],
                env=launch.env,
                stdout=output,
                stderr=output,
                pass_descriptors=(writer,),
            )
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb") as report:
            problem = await asyncio.to_thread(report.read)
        if problem:
            await process.wait()
            raise StartError(problem.decode())
        return process

    def entering(
        self, process: Process, launch: Launch, command: Sequence[str], *, terminal: bool = False
    ) -> list[str]:
        """The command line that runs a command where the container's process runs."""
        prefix = ["setpriv", "--pdeathsig", "KILL", "--", "nice", "-n", str(nicer_by(launch))]
        if terminal:
            prefix += ["setsid", "--ctty"]
        if self.config.mounts:
            prefix += ["nsenter", "--target", str(process.pid), "--mount", "--uts", "--root", "--"]
        return [*prefix, "sh", "-c", 'cd "$0" && exec "$@"', launch.directory, *command]

    async def execute(self, process: Process, launch: Launch, command: Sequence[str], *, seconds: float) -> int:
        """Run a command beside the container's process; its exit code, 124 when it took too long."""
        inner = Process(
            self.entering(process, launch, command),
            env=launch.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(seconds):
                return await inner.wait()
        except TimeoutError:
            return TIMED_OUT
        finally:
            inner.kill()
