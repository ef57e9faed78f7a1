"""The description of a cluster: its round trip to the supervisor, and what the kubelet is told."""

from pathlib import Path

import pytest
import yaml

from duet_dev.components import flags
from duet_dev.config import ClusterConfig, Node, default_nodes, kubelet_document
from duet_dev.errors import DevError
from duet_dev.kubelet.config import Config as KubeletConfig


def test_survives_the_way_to_the_supervisor(tmp_path: Path) -> None:
    config = ClusterConfig(
        "mine",
        nodes=(Node("a", {"nvidia.com/gpu": "1"}, {"zone": "x"}, ({"key": "k", "effect": "NoSchedule"},)),),
        images={"engine": ["engine", "--flag"], "slow": {"command": ["slow"], "startDelaySeconds": 2}},
        environment={"A": "b"},
        kubelet={"heartbeatSeconds": 1},
    )
    config.write(tmp_path)
    assert ClusterConfig.read(tmp_path) == config


def test_the_kubelet_accepts_its_document(tmp_path: Path) -> None:
    config = ClusterConfig("mine", environment={"A": "b"}, kubelet={"heartbeatSeconds": 1})
    document = kubelet_document(config, pod_network="10.244.0.0/16", service_network="10.96.0.0/16", mounts=True)
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(document))
    read = KubeletConfig.read(tmp_path / "nodes.yaml")
    assert [node.name for node in read.nodes] == ["gpu-0", "gpu-1", "gpu-2"]
    assert read.nodes[0].resources["nvidia.com/gpu"] == "8"
    assert read.images["duet-operator"].command == ["duet-operator"]
    assert read.env["A"] == "b"
    assert read.heartbeat_seconds == 1
    assert str(read.cluster_dns) == "10.96.0.10"


def test_unknown_components_are_named() -> None:
    with pytest.raises(DevError, match=r"components: \['kube-proxy'\] unknown; choose from etcd"):
        ClusterConfig("mine", components=("etcd", "kube-proxy"))


def test_node_names_differ() -> None:
    with pytest.raises(DevError, match="nodes: names must differ"):
        ClusterConfig("mine", nodes=(*default_nodes(1), *default_nodes(1)))


def test_flags_are_spelled_as_kubernetes_spells_them() -> None:
    assert flags(data_dir="x", profiling=False) == ["--data-dir=x", "--profiling=false"]
