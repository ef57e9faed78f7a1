"""Nodes that are about to go, as people, autoscalers and clouds mark them."""

from typing import Any

import pytest

from duet_operator.nodes import Nodes, is_leaving


def node(name: str = "n", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, False),
        ({"unschedulable": True}, True),
        ({"unschedulable": False}, False),
        ({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "karpenter.sh/disrupted", "effect": "PreferNoSchedule"}]}, False),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, False),
    ],
)
def test_what_says_that_a_node_is_about_to_go(spec: dict[str, Any], expected: bool) -> None:
    assert is_leaving(node(**spec)) is expected


def test_a_node_that_takes_pods_again_or_is_gone_is_none_of_them() -> None:
    nodes = Nodes()
    for name in ("a", "b", "c"):
        nodes.put(node(name, unschedulable=True))
    nodes.put(node("a"))
    nodes.remove(node("b", unschedulable=True))
    assert nodes.leaving == {"c"}
