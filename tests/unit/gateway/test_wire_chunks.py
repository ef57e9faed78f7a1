"""Whole chunks that pass by the parser: nothing is lost, doubled or read otherwise than the parser would read it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from duet_engine.gateway.wire.chunks import CHUNK_END, CHUNK_HEADS, framed, unframed
from duet_engine.gateway.wire.client_connection import ClientConnection
from duet_engine.gateway.wire.messages import Headers

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Wire:
    """A transport that nothing is done with."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None: ...

    close = resume_reading = abort


class Answer:
    """Gathers content in the order in which it comes, whichever way it does."""

    def __init__(self) -> None:
        self.content = b""
        self.tapped = 0
        self.end: object = None

    def answer_began(self, status: int, headers: Headers) -> None: ...

    def answer_data(self, data: bytes) -> None:
        self.content += data

    def answer_ended(self) -> None:
        self.end = "whole"

    def answer_broke(self, error: Exception) -> None:
        self.end = error

    def tap(self, chunk: bytes, start: int) -> bool:
        content = chunk[start : -len(CHUNK_END)]
        assert framed(content) == chunk
        assert unframed(chunk) == content
        if content.startswith(b"n"):  # not wanted: the parser gets it
            return False
        self.tapped += 1
        self.content += content
        return True


def read(data: bytes, cuts: list[int]) -> Answer:
    """What comes of these bytes, in reads that end at `cuts`."""
    answer, connection = Answer(), ClientConnection(lambda _: None)
    connection.connection_made(Wire())  # type: ignore[arg-type]
    connection.send(b"", answer)
    connection.data_received(HEAD)
    connection.tap = answer.tap
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        connection.data_received(data[start:end])
    return answer


contents = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"\r\n", b"2\r\nok\r\n", b"0\r\n\r\n", b"x" * 255, b"x" * 256, b"x" * 4095, b"n" * 5000]),
)
writings = st.sampled_from(
    [
        framed,
        lambda content: b"%X;a=b\r\n%b\r\n" % (len(content), content),
        lambda content: b"00%x\r\n%b\r\n" % (len(content), content),
    ]
)


@given(st.lists(st.tuples(contents, writings), max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_content_is_the_same_by_either_way(chunks: list[tuple[bytes, object]], cuts: list[int]) -> None:
    data = b"".join(write(content) for content, write in chunks) + b"0\r\n\r\n"  # type: ignore[operator]
    answer = read(data, cuts)
    assert answer.content == b"".join(content for content, _ in chunks)
    assert answer.end == "whole"


def test_reads_that_are_one_chunk_pass_by_the_parser() -> None:
    """But for the first, before which nothing says that no part of a head was read."""
    chunks = [framed(b"x" * size) for size in (1, 15, 16, 255, 256, 4095)]
    places = [sum(map(len, chunks[:count])) for count in range(1, len(chunks) + 1)]
    assert read(b"".join(chunks) + b"0\r\n\r\n", places).tapped == len(chunks) - 1


def test_what_only_looks_like_a_chunk_is_the_parsers() -> None:
    """Behind the first digit of a longer head, and as the content of another chunk."""
    inner = framed(b"ok")
    assert read(b"1" + framed(b"x" * 18).removeprefix(b"1") + b"0\r\n\r\n", [1]).tapped == 0
    behind_a_head = read(b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n", [3, 3 + len(inner)])
    assert (behind_a_head.tapped, behind_a_head.content) == (0, inner)


@given(st.integers(1, 0xFFF))
def test_a_length_tells_its_head(size: int) -> None:
    chunk = framed(b"x" * size)
    assert chunk.startswith(CHUNK_HEADS[len(chunk)])
