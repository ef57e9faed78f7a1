"""The SPDY frames of port forwarding, as written by one side and read by the other."""

import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st

from duet_dev.kubelet import spdy

STREAMS = st.integers(1, 2**31 - 1)
HEADERS = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5)
FRAMES = st.one_of(
    st.builds(spdy.Opened, STREAMS, HEADERS, st.booleans()),
    st.builds(spdy.Data, STREAMS, st.binary(max_size=200), st.booleans()),
    st.builds(spdy.Ping, st.integers(0, 2**32 - 1)),
)


def written(frames: list[spdy.Frame]) -> bytes:
    headers = spdy.HeaderWriter()
    found = b""
    for frame in frames:
        if isinstance(frame, spdy.Opened):
            found += headers.opened(frame)
        elif isinstance(frame, spdy.Data):
            found += spdy.data(frame)
        elif isinstance(frame, spdy.Ping):
            found += spdy.ping(frame.identifier)
    return found


@given(st.lists(FRAMES, max_size=6), st.integers(1, 50))
def test_frames_survive_any_cut_of_the_stream(frames: list[spdy.Frame], size: int) -> None:
    stream, reader = written(frames), spdy.Reader()
    found = [frame for at in range(0, len(stream), size) for frame in reader.feed(stream[at : at + size])]
    assert found == frames


def test_resets_and_farewells_are_read_and_other_kinds_skipped() -> None:
    settings = struct.pack("!HHI", 0x8003, 4, 4) + bytes(4)
    reset = struct.pack("!HHIII", 0x8003, 3, 8, 5, 1)
    farewell = struct.pack("!HHIII", 0x8003, 7, 8, 5, 0)
    assert list(spdy.Reader().feed(settings + reset + farewell)) == [spdy.Reset(5), spdy.GoAway()]


def test_the_dictionary_is_the_one_of_the_protocol() -> None:
    assert len(spdy.DICTIONARY) == 1423
    assert zlib.adler32(spdy.DICTIONARY) == 0xE3C6A7C2  # every FDICT stream of the protocol begins with it


def test_an_accepted_stream_is_told_by_number() -> None:
    reply = spdy.HeaderWriter().accepted(7)
    assert struct.unpack_from("!HH", reply) == (0x8003, spdy.SYN_REPLY)
    assert struct.unpack_from("!I", reply, 8) == (7,)
