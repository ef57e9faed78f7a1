"""Variables, image names, quantities and name files of the process kubelet."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_dev.kubelet import environment, images, names, quantity, sandbox
from duet_dev.kubelet.config import Config, Image

NODES = [{"name": "gpu-0", "capacity": {"nvidia.com/gpu": 8}}]


def config(**fields: object) -> Config:
    return Config.model_validate({"nodes": NODES, "podCIDR": "10.244.0.0/18", "mounts": True, **fields})


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)z", "x1y2z"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$(NOBODY)", "$(NOBODY)"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$(A)$", "1$"),
    ],
)
def test_references_expand_as_kubernetes_documents_it(text: str, expanded: str) -> None:
    assert environment.expand(text, {"A": "1", "B": "2"}) == expanded


@given(st.text(alphabet="ab() {}"))
def test_text_without_dollars_stays_as_it_is(text: str) -> None:
    assert environment.expand(text, {"a": "x"}) == text


@given(st.text(alphabet="$(A)x"))
def test_doubled_dollars_are_the_escape_for_any_text(text: str) -> None:
    assert environment.expand(text.replace("$", "$$"), {"A": "1"}) == text


def test_services_show_as_variables_except_headless_ones() -> None:
    listed = [
        {
            "metadata": {"name": "my-web"},
            "spec": {"clusterIP": "10.96.3.4", "ports": [{"port": 80, "name": "http-x"}, {"port": 81}]},
        },
        {"metadata": {"name": "head"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}},
    ]
    assert environment.of_services(listed) == {
        "MY_WEB_SERVICE_HOST": "10.96.3.4",
        "MY_WEB_SERVICE_PORT": "80",
        "MY_WEB_SERVICE_PORT_HTTP_X": "80",
    }


@pytest.mark.parametrize(
    "reference",
    [
        "duet-gateway",
        "duet-gateway:v1",
        "ghcr.io/duet/duet-gateway:v1",
        "localhost:5000/duet-gateway",
        "localhost:5000/a/b/duet-gateway@sha256:0123",
        "localhost:5000/duet-gateway:v1@sha256:0123",
    ],
)
def test_an_image_is_known_by_its_base_name(reference: str) -> None:
    known = {"duet-gateway": Image(command=["run"])}
    assert images.find(reference, known) == Image(command=["run"])
    assert images.find(reference.replace("gateway", "other"), known) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("500m", Fraction(1, 2)), ("2Gi", 2 * 2**30), ("1e3", 1000), ("1.5k", 1500), ("3E", 3 * 10**18)],
)
def test_quantities(text: str, value: Fraction) -> None:
    assert quantity.parse(text) == value


@pytest.mark.parametrize("text", ["", "x", "1Xi", "1 Gi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity.parse(text)


def test_amounts_round_up_to_whole_units() -> None:
    assert quantity.in_units("1500m", "1") == 2
    assert quantity.in_units("1Gi", "1Mi") == 1024
    assert quantity.in_units("100m", "0") == 1


def test_images_and_nodes_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(
        "nodes: [{name: a, capacity: {nvidia.com/gpu: 8}}]\n"
        "podCIDR: 10.244.0.0/18\n"
        "mounts: false\n"
        "images: {quick: [run, fast], slow: {command: [run], nice: 5, startDelaySeconds: 2}}\n"
    )
    read = Config.read(path)
    assert read.images["quick"] == Image(command=["run", "fast"])
    assert read.images["slow"].nice == 5
    assert read.images["slow"].start_delay_seconds == 2
    assert read.nodes[0].resources["nvidia.com/gpu"] == "8"
    assert read.nodes[0].resources["cpu"] == "64"
    assert not read.loopback


@pytest.mark.parametrize(
    ("line", "named"),
    [("podCIDR: 10.244.0.0/99", "podCIDR"), ("heartbeatSeconds: 0", "heartbeatSeconds"), ("imagse: {}", "imagse")],
)
def test_a_wrong_file_is_refused_by_field(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "nodes.yaml"
    fields = {"nodes": "[{name: a}]", "podCIDR": "10.244.0.0/18", "mounts": "true"}
    name, value = line.split(": ", 1)
    path.write_text("\n".join(f"{key}: {text}" for key, text in {**fields, name: value}.items()))
    with pytest.raises(SystemExit, match=named):
        Config.read(path)


@pytest.mark.parametrize(
    ("kubelet", "image", "nicer_by"), [(0, 0, 0), (-15, 0, 15), (-15, 5, 20), (10, 0, 0), (10, 12, 2)]
)
def test_a_pods_priority_is_its_images_not_the_kubelets(
    monkeypatch: pytest.MonkeyPatch, kubelet: int, image: int, nicer_by: int
) -> None:
    monkeypatch.setattr("os.getpriority", lambda *_: kubelet)
    launch = sandbox.Launch(command=["x"], env={}, binds=[], directory="/", nice=image, delay_seconds=0)
    assert sandbox.nicer_by(launch) == nicer_by


def test_the_resolver_asks_the_cluster_first_and_alone() -> None:
    extra = {"searches": ["corp"], "options": [{"name": "timeout", "value": "1"}, {"name": "edns0"}]}
    text = names.resolver("shop", config(), extra)
    assert text.splitlines() == [
        "nameserver 10.96.0.10",
        "search shop.svc.cluster.local svc.cluster.local cluster.local corp",
        "options ndots:5 timeout:1 edns0",
    ]


def test_host_names_are_looked_up_in_files_and_dns_only() -> None:
    original = "passwd: files systemd\nhosts: files mymachines resolve [!UNAVAIL=return] dns\nnetworks: files\n"
    assert names.switch(original) == "passwd: files systemd\nnetworks: files\nhosts: files dns\n"
    assert names.switch("") == "\nhosts: files dns\n"
