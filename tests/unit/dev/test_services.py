"""Routes, name records and DNS messages of the service layer."""

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_dev.kubeapi import JsonObject, WatchEvent
from duet_dev.services import dns, endpoints, names
from duet_dev.services.directory import Directory
from duet_dev.services.names import Records, Service

API_SERVER = ("127.0.0.1", 6443)


def service(name: str = "web", address: str = "10.96.1.1", **spec: Any) -> JsonObject:
    return {
        "metadata": {"namespace": "shop", "name": name, "uid": f"uid-{name}"},
        "spec": {
            "clusterIP": address,
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
            **spec,
        },
    }


def endpoint(address: str, **conditions: bool) -> JsonObject:
    return {"addresses": [address], "conditions": {"ready": True, "serving": True, **conditions}}


ENDING = {"ready": False, "serving": True, "terminating": True}
UNREADY = {"ready": False, "serving": False}


def endpoint_slice(*found: JsonObject, of: str = "web", suffix: str = "x") -> JsonObject:
    labels = {endpoints.SERVICE_NAME_LABEL: of}
    return {
        "metadata": {"namespace": "shop", "name": f"{of}-{suffix}", "uid": f"uid-{of}-{suffix}", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": list(found),
    }


def pod(name: str, address: str, *, ready: bool = True, **metadata: str) -> JsonObject:
    return {
        "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": "web", "v": "1"}, **metadata},
        "spec": {"containers": [{"ports": [{"name": "web", "containerPort": 8000}]}], "hostname": name},
        "status": {
            "podIP": address,
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def directory(*items: JsonObject, from_pods: bool = False) -> Directory:
    made = Directory(API_SERVER, from_pods)
    for item in items:
        kind = made.slices if "addressType" in item else made.pods if "status" in item else made.services
        kind.apply(WatchEvent("ADDED", item))
    return made


def test_routes_lead_to_the_ready_endpoints_of_every_slice() -> None:
    found = directory(
        service(),
        endpoint_slice(endpoint("10.244.0.2"), endpoint("10.244.0.3", **UNREADY)),
        endpoint_slice(endpoint("10.244.0.1"), suffix="y"),
        endpoint_slice(endpoint("10.244.0.9"), of="other"),
    )
    assert found.routes() == {("10.96.1.1", 80): (("10.244.0.1", 8000), ("10.244.0.2", 8000))}


def test_ending_endpoints_serve_only_while_no_other_does() -> None:
    alone = directory(service(), endpoint_slice(endpoint("10.244.0.2", **ENDING)))
    assert alone.routes() == {("10.96.1.1", 80): (("10.244.0.2", 8000),)}
    both = directory(service(), endpoint_slice(endpoint("10.244.0.2", **ENDING), endpoint("10.244.0.3")))
    assert both.routes() == {("10.96.1.1", 80): (("10.244.0.3", 8000),)}


@pytest.mark.parametrize(
    "items",
    [
        [service()],
        [service(), endpoint_slice(endpoint("10.244.0.2", **UNREADY))],
        [service(address="None"), endpoint_slice(endpoint("10.244.0.2"))],
        [service(ports=[{"name": "http", "port": 80, "protocol": "UDP"}]), endpoint_slice(endpoint("10.244.0.2"))],
        [service(ports=[{"name": "other", "port": 80}]), endpoint_slice(endpoint("10.244.0.2"))],
    ],
)
def test_without_anything_to_answer_there_is_no_route(items: list[JsonObject]) -> None:
    assert directory(*items).routes() == {}


def test_unready_endpoints_are_published_where_the_service_wants_it() -> None:
    found = directory(service(publishNotReadyAddresses=True), endpoint_slice(endpoint("10.244.0.2", **UNREADY)))
    assert found.routes() == {("10.96.1.1", 80): (("10.244.0.2", 8000),)}


def test_the_kubernetes_service_leads_to_the_api_server() -> None:
    kubernetes = service("kubernetes", "10.96.0.1", ports=[{"name": "https", "port": 443}])
    kubernetes["metadata"]["namespace"] = "default"
    assert directory(kubernetes).routes() == {("10.96.0.1", 443): (API_SERVER,)}


def test_a_node_port_leads_where_the_service_leads() -> None:
    found = directory(
        service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}]),
        endpoint_slice(endpoint("10.244.0.2")),
    ).routes()
    assert found["127.0.0.1", 30080] == found["10.96.1.1", 80] == (("10.244.0.2", 8000),)


def test_a_load_balancer_is_unbalanced_until_it_has_an_address() -> None:
    waiting, served = service("a", type="LoadBalancer"), service("b", type="LoadBalancer")
    served["status"] = {"loadBalancer": {"ingress": [{"ip": "10.96.1.1"}]}}
    found = Directory(API_SERVER, False)
    for item in (waiting, served, service("c")):
        found.services.apply(WatchEvent("ADDED", item))
    assert found.unbalanced() == [waiting]


def test_where_slices_refuse_the_addresses_pods_are_selected_directly() -> None:
    found = directory(
        service(
            ports=[{"name": "http", "port": 80, "targetPort": "web"}, {"name": "raw", "port": 81, "targetPort": 9}]
        ),
        pod("a", "127.64.0.1"),
        pod("b", "127.64.0.2", ready=False),
        pod("c", "127.64.0.3", deletionTimestamp="2026-01-01T00:00:00Z"),
        from_pods=True,
    )
    assert found.routes() == {
        ("10.96.1.1", 80): (("127.64.0.1", 8000),),
        ("10.96.1.1", 81): (("127.64.0.1", 9),),
    }


def test_a_deleted_object_is_forgotten_but_not_its_successor_of_the_same_name() -> None:
    found = directory(service())
    successor = service()
    successor["metadata"]["uid"] = "uid-2"
    found.services.apply(WatchEvent("ADDED", successor))
    found.services.apply(WatchEvent("DELETED", service()))
    assert found.services.items == {("shop", "web"): successor}
    found.services.apply(WatchEvent("DELETED", successor))
    assert found.services.items == {}


NAMED = directory(
    service(),
    service("head", "None"),
    service("far", "", type="ExternalName", externalName="example.com"),
    endpoint_slice({**endpoint("10.244.0.2"), "hostname": "head-0"}, endpoint("10.244.0.3"), of="head"),
)


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("web.shop.svc.cluster.local", Records(addresses=("10.96.1.1",))),
        ("WEB.Shop.svc.cluster.local", Records(addresses=("10.96.1.1",))),
        ("head.shop.svc.cluster.local", Records(addresses=("10.244.0.2", "10.244.0.3"))),
        ("head-0.head.shop.svc.cluster.local", Records(addresses=("10.244.0.2",))),
        ("far.shop.svc.cluster.local", Records(alias="example.com")),
        (
            "_http._tcp.web.shop.svc.cluster.local",
            Records(services=(Service(80, "web.shop.svc.cluster.local"),)),
        ),
        ("web.other.svc.cluster.local", None),
        ("web.shop.svc", None),
        ("head-9.head.shop.svc.cluster.local", None),
        ("_raw._tcp.web.shop.svc.cluster.local", None),
        ("_http._udp.web.shop.svc.cluster.local", None),
        ("example.com", None),
        ("", None),
    ],
)
def test_names(name: str, records: Records | None) -> None:
    assert names.look_up(name, NAMED, "cluster.local") == records


def query(name: str, kind: int = dns.TYPE_A, *, flags: int = dns.RECURSION_DESIRED) -> bytes:
    question = dns.encoded_name(name) + struct.pack("!HH", kind, dns.CLASS_IN)
    return struct.pack("!HHHHHH", 0x1234, flags, 1, 0, 0, 0) + question


def header(reply: bytes | None) -> tuple[int, int, int]:
    """Identifier, response code and number of answers."""
    assert reply is not None
    identifier, flags, _, answers, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert flags & dns.RESPONSE
    return identifier, flags & 0xF, answers


def test_addresses_are_answered_with_the_question_repeated() -> None:
    message = query("web.x")
    reply = dns.answer(message, lambda _: Records(addresses=("10.96.1.1", "10.96.1.2")))
    assert header(reply) == (0x1234, dns.NO_ERROR, 2)
    assert reply is not None
    assert reply[12:].startswith(message[12:])
    assert reply.endswith(socket.inet_aton("10.96.1.2"))


@pytest.mark.parametrize(
    ("kind", "found", "code", "answers"),
    [
        (28, Records(addresses=("10.96.1.1",)), dns.NO_ERROR, 0),
        (dns.TYPE_SRV, Records(services=(Service(80, "web.x"),)), dns.NO_ERROR, 1),
        (dns.TYPE_A, Records(alias="example.com"), dns.NO_ERROR, 1),
        (dns.TYPE_A, None, dns.NO_SUCH_NAME, 0),
    ],
)
def test_answers_depend_on_what_is_asked(kind: int, found: Records | None, code: int, answers: int) -> None:
    assert header(dns.answer(query("web.x", kind), lambda _: found)) == (0x1234, code, answers)


def test_a_long_answer_is_cut_over_udp_and_says_so() -> None:
    many = Records(addresses=tuple(f"10.244.0.{n}" for n in range(1, 100)))
    short = dns.answer(query("head.x"), lambda _: many, longest_bytes=dns.LONGEST_UDP_BYTES)
    assert short is not None
    assert struct.unpack_from("!H", short, 2)[0] & dns.TRUNCATED
    assert header(dns.answer(query("head.x"), lambda _: many))[2] == 99


def test_what_is_no_query_gets_no_answer_and_what_cannot_be_read_an_error() -> None:
    assert dns.answer(b"short", lambda _: None) is None
    assert dns.answer(query("x", flags=dns.RESPONSE), lambda _: None) is None
    cut = query("web.x")[:-3]
    assert header(dns.answer(cut, lambda _: None)) == (0x1234, dns.FORMAT_ERROR, 0)
    assert header(dns.answer(query("x", flags=0x2800), lambda _: None))[1] == dns.NOT_IMPLEMENTED


@given(st.binary(max_size=80))
def test_no_message_brings_the_server_down(message: bytes) -> None:
    dns.answer(message, lambda _: Records(addresses=("10.96.1.1",)))
