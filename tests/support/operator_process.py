"""The operator as a process outside the cluster, with the rights that the chart gives it and no others."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from duet_dev import build
from duet_dev.cluster import Cluster
from duet_dev.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "duet"
NAMESPACE = "duet-system"
ACCOUNT = "duet-operator"
PASSES_DONE = 'duet_operator_passes_total{result="done"}'
START_SECONDS = 60.0
END_SECONDS = 30.0
CHANGE_SECONDS = 40.0


def rendered(*options: str) -> list[dict[str, Any]]:
    """The chart's objects, without its CRD."""
    command = [str(build.binary_path(build.HELM)), "template", NAMESPACE, str(CHART), f"--namespace={NAMESPACE}"]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def install(cluster: Cluster, *options: str, namespace: str = NAMESPACE) -> Path:
    """CRD, account and rights as the chart makes them; a kubeconfig of that account comes back."""
    cluster.kubectl("apply", "-f", str(CHART / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CHART / "crds"))
    cluster.kubectl("create", "namespace", NAMESPACE, check=False)
    wanted = [each for each in rendered(*options) if each["kind"] != "Deployment"]
    cluster.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}))
    token = cluster.kubectl("create", "token", ACCOUNT, f"--namespace={namespace}", "--duration=2h").stdout.strip()
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in document["users"]:
        user["user"] = {"token": token}
    path = cluster.root / "operator-kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


@dataclass(slots=True)
class OperatorProcess:
    """A running operator."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def url(self) -> str:
        """Where it serves `/healthz` and `/metrics`."""
        found = re.search(r"serves /healthz and /metrics on (\S+:\d+)", self.log)
        assert found is not None, self.log
        return f"http://{found[1]}"

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as response:
            return dict(json.load(response))

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels as they stand in the text."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def writes(self) -> dict[str, float]:
        """Counters of writes."""
        return {name: value for name, value in self.metrics().items() if name.startswith("duet_operator_writes_total")}

    def written(self) -> float:
        """Writes so far, those of the Lease apart."""
        return sum(value for name, value in self.writes().items() if 'kind="Lease"' not in name)

    def pass_on(self, passes: int) -> None:
        """Until it has had so many more passes than now."""

        def done() -> float:
            return self.metrics().get(PASSES_DONE, 0.0)

        wanted = done() + passes
        until(f"{passes} passes later", lambda: done() >= wanted)

    def quiet_in(self, passes: int) -> Callable[[], bool]:
        """Whether it wrote nothing in so many passes."""

        def quiet() -> bool:
            before = self.written()
            self.pass_on(passes)
            return self.written() == before

        return quiet

    def memory_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def wait_until_acting(self, *, seconds: float = START_SECONDS) -> None:
        """Until it holds the Lease and has listed everything."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            # With thousands of pods to list on a busy machine it may answer late.
            with suppress(TimeoutError):
                if "serves /healthz" in self.log and self.health()["leading"]:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the operator didn't start within {seconds:g} s\n{self.log}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        return self.process.wait(END_SECONDS)


def until(what: str, holds: Callable[[], Any], *, seconds: float = CHANGE_SECONDS, pause_seconds: float = 0.2) -> Any:
    """What `holds` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"within {seconds:g} s not so: {what}"
        time.sleep(pause_seconds)
    return found


@contextmanager
def running_operator(kubeconfig: Path, log_path: Path, **settings: object) -> Iterator[OperatorProcess]:
    """An operator with these settings, named as in `Settings`; ended at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DUET_OPERATOR_")}
    chosen = {"http_port": 0, "namespace": NAMESPACE, "log_level": "INFO", **settings}
    environment |= {f"DUET_OPERATOR_{name.upper()}": str(value) for name, value in chosen.items()}
    environment["KUBECONFIG"] = str(kubeconfig)
    with log_path.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "duet_operator"], env=environment, stdout=log, stderr=log)
    operator = OperatorProcess(process, log_path)
    try:
        yield operator
    finally:
        operator.end()
