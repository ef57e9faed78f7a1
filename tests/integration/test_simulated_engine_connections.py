"""HTTP details that clients use: keep-alive, pipelining, chunked and announced bodies, HEAD, HTTP/1.0, nonsense."""

import json
import socket
from collections.abc import Iterator

import pytest
from tests.support.simulated_engines import Engine, running_engine

BODY = json.dumps({"prompt": "hello", "max_tokens": 2, "ignore_eos": True}).encode()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine("unified", "--keep-alive-seconds", "1") as running:
        yield running


@pytest.fixture
def connection(engine: Engine) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as open_connection:
        yield open_connection


def post(body: bytes = BODY, *, extra: bytes = b"") -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (extra, len(body), body)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer with a content-length: status, headers, body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    while len(body) < int(headers.get("content-length", 0)):
        body += received(connection)
    return int(status.split()[1]), headers, body


def received(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    assert data, "the connection was closed"
    return data


def test_a_connection_serves_request_after_request(connection: socket.socket) -> None:
    for _ in range(3):
        connection.sendall(post())
        assert answer(connection)[0] == 200


def test_pipelined_requests_are_answered_in_order(connection: socket.socket) -> None:
    connection.sendall(
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" + post() + b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"
    )
    connection.settimeout(10)
    data = b""
    while data.count(b"HTTP/1.1 ") < 3 or not data.endswith(b'"Not Found"}'):
        data += received(connection)
    assert data.index(b'"object":"list"') < data.index(b'"text_completion"') < data.index(b"404 Not Found")


def test_a_chunked_body_and_one_in_pieces(connection: socket.socket) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    connection.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert answer(connection)[0] == 200
    for byte in (bytes([value]) for value in post()):
        connection.sendall(byte)
    assert answer(connection)[0] == 200


def test_a_client_may_ask_before_it_sends_a_large_body(connection: socket.socket) -> None:
    request = post(extra=b"expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    assert received(connection).startswith(b"HTTP/1.1 100 Continue")
    connection.sendall(body)
    assert answer(connection)[0] == 200


def test_head_has_no_body(connection: socket.socket) -> None:
    connection.sendall(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\nGET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
    data = b""
    while data.count(b"HTTP/1.1 200") < 2:
        data += received(connection)
    assert b"object" not in data


@pytest.mark.parametrize(
    "request_text",
    [b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"GET /v1/models HTTP/1.0\r\n\r\n"],
)
def test_a_client_that_wants_the_connection_closed_gets_it_closed(
    connection: socket.socket, request_text: bytes
) -> None:
    connection.sendall(request_text)
    status, headers, _ = answer(connection)
    assert status == 200 and headers["connection"] == "close"
    assert connection.recv(1) == b""


def test_nonsense_is_refused_and_the_engine_lives_on(engine: Engine, connection: socket.socket) -> None:
    connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    assert answer(connection)[0] == 400
    assert connection.recv(1) == b""
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as other:
        other.sendall(post())
        assert answer(other)[0] == 200


def test_an_idle_connection_is_closed_as_sglang_does(connection: socket.socket) -> None:
    connection.sendall(post())
    assert answer(connection)[0] == 200
    assert connection.recv(1) == b""
