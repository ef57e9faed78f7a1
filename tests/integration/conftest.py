"""The operator's account on the API server with its controllers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.operator_process import install
from tests.support.rest import Rest
from tests.support.served import Served

from duet_dev import build
from duet_dev.cluster import Cluster


@pytest.fixture(scope="session")
def kubeconfig(control_plane: Cluster) -> Path:
    """Of the operator's account."""
    if build.missing([build.HELM]):
        pytest.skip("helm not built: run `make binaries`")
    return install(control_plane)


@pytest.fixture(scope="module")
def rest(control_plane: Cluster) -> Iterator[Rest]:
    """The administrator's way to look."""
    with Rest(control_plane) as opened:
        yield opened


@pytest.fixture
def served(control_plane: Cluster, rest: Rest, namespace: str) -> Served:
    """An object that isn't applied yet, in a namespace of its own."""
    return Served(control_plane, rest, namespace)
