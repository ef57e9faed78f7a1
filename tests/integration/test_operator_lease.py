"""The Lease gate on the real API server: two operators, a network that breaks, a process that is paused.

Each operator reaches the API server through a relay that notes what it sends.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.duet_objects import minimal, patched
from tests.support.operator_process import OperatorProcess, install, running_operator, until
from tests.support.relay import Relay, Request, relayed

from duet_dev import build
from duet_dev.cluster import Cluster

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.timeout(180)]

LEASE_SECONDS = 9


class Watched(NamedTuple):
    """An operator and what it sends."""

    process: OperatorProcess
    relay: Relay


@pytest.fixture(scope="session")
def kubeconfig(control_plane: Cluster) -> Path:
    if build.missing([build.HELM]):
        pytest.skip("helm not built: run `make binaries`")
    return install(control_plane)


@contextmanager
def watched_operator(cluster: Cluster, kubeconfig: Path, folder: Path, name: str) -> Iterator[Watched]:
    with (
        relayed(kubeconfig, folder, ca=cluster.ca) as (relay, through),
        running_operator(through, folder / f"{name}.log", lease_seconds=LEASE_SECONDS) as process,
    ):
        yield Watched(process, relay)


@pytest.fixture
def pair(control_plane: Cluster, kubeconfig: Path, tmp_path: Path) -> Iterator[tuple[Watched, Watched]]:
    """Two operators; the first one leads."""
    with watched_operator(control_plane, kubeconfig, tmp_path, "leader") as leader:
        leader.process.wait_until_acting()
        with watched_operator(control_plane, kubeconfig, tmp_path, "other") as other:
            until("the other one asks for the Lease", lambda: asks_for_the_lease(other), seconds=60)
            yield leader, other


def asks_for_the_lease(operator: Watched) -> bool:
    return any("/leases" in each.path for each in operator.relay.requests)


def apply(cluster: Cluster, namespace: str, name: str) -> None:
    document = patched(minimal(name=name), {"metadata.namespace": namespace})
    cluster.kubectl("apply", "-f", "-", input=json.dumps(document))


def told(cluster: Cluster, namespace: str, name: str) -> Callable[[], bool]:
    """Whether somebody has acted on it."""

    def holds() -> bool:
        shown = cluster.kubectl("get", "duet", name, f"--namespace={namespace}", "--output=json").stdout
        return "observedGeneration" in json.loads(shown).get("status", {})

    return holds


def writes_about(operator: Watched, namespace: str) -> list[Request]:
    return [each for each in operator.relay.writes() if f"/namespaces/{namespace}/" in each.path]


def test_of_two_operators_only_the_holder_writes(
    pair: tuple[Watched, Watched], control_plane: Cluster, namespace: str
) -> None:
    leader, other = pair
    apply(control_plane, namespace, "one")
    until("the leader acts", told(control_plane, namespace, "one"))
    assert writes_about(leader, namespace)
    assert other.relay.writes() == []
    assert leader.process.end() == 0
    apply(control_plane, namespace, "two")
    until("the other one acts", told(control_plane, namespace, "two"), seconds=60)
    assert writes_about(other, namespace)


def test_a_partitioned_operator_ends_by_itself_and_what_it_sent_stays_behind(
    pair: tuple[Watched, Watched], control_plane: Cluster, namespace: str
) -> None:
    leader, other = pair
    leader.relay.cut()
    through = len(leader.relay.requests)
    other.process.wait_until_acting()
    assert leader.process.process.wait(30) == 1, leader.process.log
    assert "ends, so that another operator may act" in leader.process.log
    apply(control_plane, namespace, "one")
    until("the other one acts", told(control_plane, namespace, "one"))
    leader.relay.mend()
    assert [each for each in leader.relay.requests[through:] if each.is_write and "/leases" not in each.path] == []


def test_a_paused_operator_writes_nothing_when_it_goes_on(
    pair: tuple[Watched, Watched], control_plane: Cluster, namespace: str
) -> None:
    leader, other = pair
    apply(control_plane, namespace, "before")
    until("the leader acts", told(control_plane, namespace, "before"))
    leader.process.process.send_signal(signal.SIGSTOP)
    other.process.wait_until_acting()
    apply(control_plane, namespace, "meanwhile")
    until("the other one acts", told(control_plane, namespace, "meanwhile"))
    # Something that each pass would repair at once, and that only the paused one could still want to.
    control_plane.kubectl("delete", "duet", "--all", f"--namespace={namespace}")
    written = len(leader.relay.writes())
    leader.process.process.send_signal(signal.SIGCONT)
    assert leader.process.process.wait(30) == 1, leader.process.log
    assert leader.relay.writes()[written:] == []
    lease = json.loads(control_plane.kubectl("get", "lease", "-n", "duet-system", "duet-operator", "-o", "json").stdout)
    assert lease["spec"]["holderIdentity"] in other.process.log
