"""Moves off nodes in any order of events: counts never run away, and pools end as they should, on nodes that stay."""

import asyncio

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.operator.test_relocation import NEW_NODE, OLD_NODE, Cluster

MOST_WORKERS = 3
NODES = (OLD_NODE, NEW_NODE)
SETTLING_PASSES = 30


class Moves(RuleBasedStateMachine):
    """A pool whose nodes come and go, while its target moves and operators restart."""

    @initialize(count=st.integers(1, MOST_WORKERS))
    def create(self, count: int) -> None:
        self.cluster = asyncio.run(Cluster.serving(count, {"pools.decode.maxReplicas": MOST_WORKERS}))
        self.wanted = count

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.settle()

    @rule(name=st.sampled_from(NODES), undo=st.booleans())
    def cordon(self, name: str, undo: bool) -> None:
        self.cluster.cordon(name, undo=undo)

    @rule(count=st.integers(1, MOST_WORKERS))
    def retarget(self, count: int) -> None:
        self.wanted = self.cluster.bench.planner.decode = count

    @rule()
    def hold(self) -> None:
        """The planner can't decide, and keeps the present counts."""
        self.cluster.bench.planner.decode = None

    @rule(silent=st.booleans())
    def silence(self, silent: bool) -> None:
        """The gateways stop to answer, or answer again."""
        self.cluster.silent = silent

    @rule()
    def restart(self) -> None:
        self.cluster.bench.controller = self.cluster.bench.new_controller()

    @rule(node=st.sampled_from((*NODES, None)))
    def step(self, node: str | None) -> None:
        asyncio.run(self.cluster.steps(1, node=node))

    @rule()
    def operate(self) -> None:
        asyncio.run(self.cluster.run_pass())

    @invariant()
    @precondition(lambda self: hasattr(self, "cluster"))
    def counts_do_not_run_away(self) -> None:
        assert self.cluster.bench.replicas("decode") <= 2 * MOST_WORKERS

    def settle(self) -> None:
        """With one node for good and the other about to go, all workers end on the one."""
        cluster = self.cluster
        cluster.cordon(NEW_NODE, undo=True)
        cluster.cordon(OLD_NODE)
        cluster.silent = False
        self.cluster.bench.planner.decode = self.wanted
        asyncio.run(cluster.steps(SETTLING_PASSES))
        assert cluster.bench.replicas("decode") == self.wanted
        assert len(cluster.serving_on(NEW_NODE)) == len(cluster.bench.pods("decode")) == self.wanted
        assert cluster.note is None


TestMoves = Moves.TestCase
TestMoves.settings = settings(
    max_examples=6,
    stateful_step_count=20,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
