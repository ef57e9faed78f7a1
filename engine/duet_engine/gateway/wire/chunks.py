"""Chunked framing of HTTP/1.1 as this gateway, and every server that matters, writes it.

Invariant: a length of bytes has at most one head that frames exactly so many bytes, so comparing it checks all of it.
"""

from __future__ import annotations

CHUNK_END = b"\r\n"
_LONGEST_CHUNK_BYTES = 0xFFF
_NO_HEAD = b"\n"
"""Of lengths that no chunk has: nothing that follows a chunk begins so."""


def framed(content: bytes) -> bytes:
    """One chunk; never an empty one, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def unframed(chunk: bytes) -> bytes:
    """The content of one whole chunk."""
    return chunk[chunk.index(CHUNK_END) + len(CHUNK_END) : -len(CHUNK_END)]


def _heads() -> tuple[bytes, ...]:
    """By the length of a whole chunk."""
    sizes = range(1, _LONGEST_CHUNK_BYTES + 1)
    heads = {len(b"%x" % size) + size + 2 * len(CHUNK_END): b"%x\r\n" % size for size in sizes}
    return tuple(heads.get(length, _NO_HEAD) for length in range(max(heads) + 1))


CHUNK_HEADS = _heads()
"""The head of a chunk that is so long, framing and all."""
