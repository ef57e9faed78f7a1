"""The whole of Duet on the local cluster: one operator for the run, one DuetDeployment and namespace for each test.

A test that fails shows the object, its pods and events, and the end of the operator's log.
"""

from collections.abc import AsyncIterator, Generator, Iterator

import pytest
from tests.support.operator_release import OperatorRelease
from tests.support.pods import Namespace
from tests.support.serving import Serving

from duet_dev.cluster import Cluster
from duet_dev.kubeapi import Api

SHOWN_LOG_LINES = 60
SHORT = (
    "settings.demandWindowSeconds=4",
    "settings.drainLeaseFloorSeconds=6",
    "settings.drainSettleSeconds=1",
    "settings.leaseSeconds=10",
)
UNDER_TEST = pytest.StashKey[tuple[Serving, OperatorRelease]]()


@pytest.fixture
def pods(local_cluster: Cluster, namespace: str) -> Iterator[Namespace]:
    """A namespace for pods of the test's own."""
    with Namespace(local_cluster, namespace) as opened:
        yield opened


@pytest.fixture(scope="session")
def operator_release(local_cluster: Cluster) -> Iterator[OperatorRelease]:
    """The operator, with windows and leases as short as the tests' patience."""
    release = OperatorRelease(local_cluster)
    release.install(*SHORT)
    yield release


@pytest.fixture
async def operator(operator_release: OperatorRelease) -> AsyncIterator[OperatorRelease]:
    """The running operator; one that the test ended is started again."""
    yield operator_release
    await operator_release.start()


@pytest.fixture
async def serving(
    request: pytest.FixtureRequest, local_cluster: Cluster, operator: OperatorRelease, namespace: str
) -> AsyncIterator[Serving]:
    """An object that isn't applied yet, in a namespace of its own."""
    async with Api(local_cluster.kubeconfig) as api:
        under_test = Serving(local_cluster, api, namespace)
        request.node.stash[UNDER_TEST] = (under_test, operator)
        yield under_test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """While everything of a failed test is still there."""
    report = yield
    found = item.stash.get(UNDER_TEST, None)
    if report.when == "call" and report.failed and found is not None:
        under_test, release = found
        report.sections.append(("DuetDeployment", under_test.described()))
        report.sections.append(("operator", release.log(lines=SHOWN_LOG_LINES)))
    return report
