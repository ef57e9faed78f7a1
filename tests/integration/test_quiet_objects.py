"""Many objects that need nothing cost nothing."""

import json
import secrets
import sys
from pathlib import Path

import pytest
from tests.support.duet_objects import minimal, patched
from tests.support.operator_process import running_operator, until
from tests.support.rest import Rest
from tests.support.served import tells_of_pods

from duet_dev.cluster import Cluster
from duet_operator.cluster import DUET

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.timeout(300)]

OBJECTS = 50
LARGEST_MIB = 150


@pytest.fixture
def crowded(control_plane: Cluster) -> str:
    """A namespace that stays: to take all of it away again keeps the controllers busy beside the tests that follow."""
    name = f"crowded-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", name)
    return name


def test_many_quiet_objects_cost_no_write_and_little_memory(
    kubeconfig: Path,
    control_plane: Cluster,
    rest: Rest,
    crowded: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    objects = [
        patched(minimal(name=f"quiet-{number}"), {"metadata.namespace": crowded, "spec.gateway.replicas": 1})
        for number in range(OBJECTS)
    ]
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(everything))
    with running_operator(kubeconfig, tmp_path / "log") as operator:
        operator.wait_until_acting()
        until("every object tells of its pods", lambda: all(map(tells_of_pods, rest.list(DUET, crowded))), seconds=150)
        until("writes have ended", operator.quiet_in(OBJECTS), seconds=60)
        before = operator.written()
        operator.pass_on(2 * OBJECTS)
        assert operator.written() == before
        memory = operator.memory_mib()
    with capsys.disabled():
        sys.stdout.write(f"\n{OBJECTS} objects: {memory:.0f} MiB resident, 0 writes in two passes over them\n")
    assert memory < LARGEST_MIB
