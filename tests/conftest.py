"""Fixtures of the real API server, in three sizes, each started once per test run and ended with it.

- `apiserver`: etcd and kube-apiserver on this machine's loopback address. Objects are stored and validated (CRDs,
  CEL, server-side apply, RBAC); nothing acts on them: no garbage collection, namespaces stay Terminating.
- `control_plane`: the controller manager too. Deployments make ReplicaSets and pods, owners take their children
  along; nothing schedules or runs a pod.
- `local_cluster`: everything, in namespaces of its own, pods as real processes on three nodes.

Each yields a `duet_dev.cluster.Cluster`: `kubeconfig`, `url`, `token`, `ca`, `kubectl(…)`. Without the built binaries
they skip; with DUET_REQUIRE_CLUSTER=1 they fail. `namespace` is a fresh namespace in the largest of the three that the
test asks for, `apiserver` by default. Helpers for several test files lie in `tests/support` and are imported as
`tests.support.…`: the repository's root is on the path, and a folder without `__init__.py` is a package there.
"""

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from hypothesis import settings
from tests.support.operator_process import until
from tests.support.rest import Rest

from duet_dev import build
from duet_dev.cluster import Cluster, tools_for
from duet_dev.config import API_SERVER_ONLY, WHOLE_CLUSTER, WITH_CONTROLLERS, ClusterConfig
from duet_operator.cluster import SERVICE_ACCOUNT

NAMESPACES = "/api/v1/namespaces"

# A shell starts what runs in its background with SIGINT ignored, and every child inherits that: Ctrl-C is tested too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Many containers set it, and then each start of each process compiles all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes says something of the machine, not of the property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def _cluster(
    name: str, components: tuple[str, ...], isolation: str, folders: pytest.TempPathFactory
) -> Iterator[Cluster]:
    missing = [tool.name for tool in build.missing(tools_for(components))]
    if missing:
        reason = f"{', '.join(missing)} not built: run `python -m duet_dev build` with dev/ on the PYTHONPATH"
        if os.environ.get("DUET_REQUIRE_CLUSTER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    config = ClusterConfig(name, components=components, isolation=isolation)
    with Cluster(config, folders.mktemp(name)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from _cluster("apiserver", API_SERVER_ONLY, "host", tmp_path_factory)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from _cluster("control-plane", WITH_CONTROLLERS, "host", tmp_path_factory)


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from _cluster("local-cluster", WHOLE_CLUSTER, "auto", tmp_path_factory)


@pytest.fixture(scope="session")
def connections() -> Iterator[dict[str, Rest]]:
    """One for each cluster that a namespace was asked of."""
    opened: dict[str, Rest] = {}
    yield opened
    for rest in opened.values():
        rest.close()


@pytest.fixture
def namespace(request: pytest.FixtureRequest, connections: dict[str, Rest]) -> Iterator[str]:
    """A fresh namespace, gone afterwards where something collects it."""
    sizes = ("local_cluster", "control_plane", "apiserver")
    size = next((size for size in sizes if size in request.fixturenames), "apiserver")
    cluster: Cluster = request.getfixturevalue(size)
    if size not in connections:
        connections[size] = Rest(cluster)
    rest, name = connections[size], f"test-{secrets.token_hex(4)}"
    status, answer = rest.request("POST", NAMESPACES, {"metadata": {"name": name}})
    assert status == HTTPStatus.CREATED, answer
    if size != "apiserver":
        # Without the account that the controllers make, no pod is let in.
        until("the namespace has its account", lambda: rest.list(SERVICE_ACCOUNT, name), pause_seconds=0.02)
    yield name
    status, answer = rest.request("DELETE", f"{NAMESPACES}/{name}")
    assert status in (HTTPStatus.OK, HTTPStatus.ACCEPTED), answer
