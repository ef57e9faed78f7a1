"""Requests as no decent client sends them, made from a seed: framing, JSON and manners, each wrong in its own way.

Whatever stands in them outside of a prompt carries MARK, so that a worker that ever sees it has been reached by bytes
that were not understood.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

MARK = b"EVIL"
PATHS = ("/v1/completions", "/v1/chat/completions", "/generate")
STEERING = ("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_evil", "rid", "priority", "duet")


@dataclass(frozen=True, slots=True)
class Hostile:
    """Bytes to send, and how."""

    kind: str
    pieces: tuple[bytes, ...]
    """Sent one after the other, each in a packet of its own."""
    leaves: bool = False
    """The client resets the connection instead of reading."""


def hostile(seed: int) -> Hostile:
    """The request of this seed; neighbours are of different kinds."""
    kinds = tuple(_KINDS)
    kind = kinds[seed % len(kinds)]
    source = random.Random(seed)
    sent = _KINDS[kind](source)
    pieces = _split(sent, source) if kind == "split" or source.random() < 0.2 else (sent,)
    return Hostile(kind, pieces, leaves=kind == "leaves" or source.random() < 0.03)


def _fields(source: random.Random, path: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"stream": source.random() < 0.7}
    if path == "/generate":
        return {**fields, "text": "once upon", "sampling_params": {"max_new_tokens": 3}}
    if path == "/v1/completions":
        return {**fields, "prompt": "once upon", "max_tokens": 3}
    return {**fields, "messages": [{"role": "user", "content": "once upon"}], "max_tokens": 3}


def _head(path: str, *headers: bytes) -> bytes:
    return b"\r\n".join((f"POST {path} HTTP/1.1".encode(), b"Host: gateway", *headers, b"", b""))


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def _valid(source: random.Random) -> bytes:
    path = source.choice(PATHS)
    body = json.dumps(_fields(source, path)).encode()
    if source.random() < 0.3:
        cut = source.randrange(len(body))
        parts = b"".join(b"%x;x=EVIL\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
        return _head(path, b"Transfer-Encoding: chunked") + parts + b"0\r\n\r\n"
    return _head(path, b"X-Evil: EVIL", _length(body)) + body


def _steering(source: random.Random) -> bytes:
    path = source.choice(PATHS)
    fields = _fields(source, path)
    for name in source.sample(STEERING, source.randrange(1, 5)):
        fields[name] = source.choice(["EVIL", ["EVIL"], {"gateway": "EVIL"}])
    body = json.dumps(fields).encode()
    if source.random() < 0.3:  # the same name twice, once spelt with an escape
        body = body[:-1] + b', "\\u0072id": "EVIL", "bootstrap\\u005fhost": "EVIL"}'
    return _head(path, _length(body)) + body


def _bad_json(source: random.Random) -> bytes:
    path = source.choice(PATHS)
    good = json.dumps(_fields(source, path))
    nasty: list[bytes] = [
        good[: source.randrange(len(good))].encode(),
        good.encode("utf-16"),
        b"\xef\xbb\xbf" + good.encode(),
        b"[" * source.randrange(1, 60_000),
        b'{"a":' * source.randrange(1, 20_000),
        b'{"prompt": "\\ud800", "text": "\\ud800", "messages": [{"content": "\\udfff"}]}',
        b'{"prompt": "a", "text": "a", "temperature": 1e999}',
        b'{"prompt": "a", "text": "a", "max_tokens": -%d}' % 10 ** source.randrange(1, 4000),
        b'{"prompt": [[1, 2], [3]], "text": ["a", "b"], "messages": {"role": 1}}',
        b'{"prompt": null, "text": null, "messages": null, "stream": 7, "n": {"EVIL": 1}}',
        b'{"prompt": "a", "model": ["EVIL"], "stream_options": "EVIL"}',
        b"null",
        b"",
        b"\x00" * source.randrange(1, 100),
        source.randbytes(source.randrange(1, 300)),
    ]
    body = source.choice(nasty)
    return _head(path, _length(body)) + body


def _framing(source: random.Random) -> bytes:
    body = b'{"prompt": "once upon", "text": "once upon", "stream": true}'
    path = source.choice(PATHS[::2])
    length, chunked = _length(body), b"Transfer-Encoding: chunked"
    headers = source.choice(
        [
            (length, length),
            (length, b"Content-Length: 0"),
            (b"Content-Length: 0, %d" % len(body),),
            (length, chunked),
            (chunked, length),
            (chunked, chunked),
            (b"Transfer-Encoding: identity, chunked",),
            (b"Transfer-Encoding: chunked\x0b",),
            (b"Transfer-Encoding : chunked",),
            (b"Transfer-Encoding:\r\n chunked",),
            (b"X: EVIL\r\n folded", length),
            (b"X: a\nContent-Length: 5", length),
            (b"X: a\rTransfer-Encoding: chunked", length),
            (b"Content-Length: +%d" % len(body),),
            (b"Content-Length: %d " % (len(body) + 5),),
            (b"Content-Length: 0x10",),
            (b"Content-Length: 99999999999999999999999",),
            (b"Content-Length: -1",),
            (b"\x00: EVIL", length),
            (b"X\xff: EVIL", length),
            (b"Content-Encoding: gzip", length),
            (b"Upgrade: h2c", b"Connection: Upgrade", length),
            (b"Expect: 100-continue", length),
            (b"Expect: EVIL", length),
            (b"Connection: close, Content-Length", length),
            (b"Host: EVIL", length),
        ]
    )
    return _head(path, *headers) + body


def _chunks(source: random.Random) -> bytes:
    pieces = [
        b'5\r\n{"a":\r\n',
        b"5 \r\nEVIL!\r\n",
        b"5\nEVIL!\n",
        b"-5\r\nEVIL!\r\n",
        b"0x5\r\nEVIL!\r\n",
        b"FFFFFFFFFFFFFFFFFFFF\r\nEVIL\r\n",
        b"7fffffff\r\nEVIL\r\n",
        b"2\r\nEVIL\r\n",
        b"5;" + b"EVIL" * source.randrange(1, 3000) + b"\r\nEVIL!\r\n",
        b"0\r\nX-Trailer: EVIL\r\n\r\n",
        b"0\r\n\r\n",
        b"\r\n",
    ]
    body = b"".join(source.choices(pieces, k=source.randrange(1, 6)))
    return _head(source.choice(PATHS), b"Transfer-Encoding: chunked") + body


def _smuggled(source: random.Random) -> bytes:
    """A second request hidden where a front server and this one could differ."""
    hidden = b'POST /generate HTTP/1.1\r\nHost: EVIL\r\nContent-Length: 15\r\n\r\n{"text":"EVIL"}'
    body = b'{"prompt": "once", "text": "once"}'
    return source.choice(
        [
            _head("/generate", _length(body), b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + hidden,
            _head("/generate", b"Content-Length: 0", _length(body)) + body + hidden,
            _head("/generate", b"Transfer-Encoding: xchunked") + b"0\r\n\r\n" + hidden,
            _head("/generate", b"Content-Length: %d" % (len(body) - 9)) + body + hidden,
            b"GET /health HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden,
            b"GET /health HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: EVIL\r\n\r\n" + hidden,
            b"GET /EVIL HTTP/1.1 \r\nHost: x\r\n\r\n" + hidden.replace(b"HTTP/1.1", b"HTTP/1.1 "),
        ]
    )


def _pipelined(source: random.Random) -> bytes:
    get = b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\nX: EVIL\r\n\r\n"
    return _valid(source) + get * source.randrange(1, 40) + source.choice([b"", b"EVIL\r\n\r\n", _valid(source)])


def _large(source: random.Random) -> bytes:
    size = source.choice([1_000, 30_000, 33_000, 70_000, 300_000])
    return source.choice(
        [
            _head("/generate", b"X-Large: " + b"EVIL" * (size // 4)),
            _head("/generate", *(b"X-%d: EVIL" % number for number in range(size // 100))),
            b"GET /" + b"EVIL" * (size // 4) + b" HTTP/1.1\r\nHost: gateway\r\n\r\n",
            b"POST /generate HTTP/1.1\r\nHost: gateway\r\nX: " + b"EVIL" * (size // 4),
            _head("/generate", b"Content-Length: %d" % (size * 1000)) + b"EVIL" * (size // 40),
        ]
    )


def _lines(source: random.Random) -> bytes:
    line = source.choice(
        [
            b"POST /generate",
            b"POST /generate HTTP/2.0",
            b"POST /generate HTTP/1.10",
            b"post /generate HTTP/1.1",
            b"EVIL /generate HTTP/1.1",
            b"POST  /generate HTTP/1.1",
            b"POST\t/generate\tHTTP/1.1",
            b"POST /gen erate HTTP/1.1",
            b"POST http://EVIL:1/generate HTTP/1.1",
            b"POST //EVIL/generate HTTP/1.1",
            b"POST /../generate HTTP/1.1",
            b"POST /generate%00 HTTP/1.1",
            b"POST /generate?x=EVIL#EVIL HTTP/1.1",
            b"CONNECT EVIL:80 HTTP/1.1",
            b"OPTIONS * HTTP/1.1",
            b"TRACE /generate HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
            b"HTTP/1.1 200 EVIL",
        ]
    )
    body = b'{"text": "once upon"}'
    return line + b"\r\nHost: gateway\r\n" + _length(body) + b"\r\n\r\n" + body


def _flipped(source: random.Random) -> bytes:
    """A good request's head with some bytes changed, taken out or put in."""
    head, body = (_head("/generate", b"X: EVIL", b"Content-Length: 21"), b'{"text": "once upon"}')
    changed = bytearray(head)
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(len(changed))
        changed[at : at + source.randrange(2)] = source.randbytes(source.randrange(3))
    return bytes(changed) + body


def _noise(source: random.Random) -> bytes:
    return source.randbytes(source.randrange(1, 2000))


def _partial(source: random.Random) -> bytes:
    sent = _valid(source)
    return sent[: source.randrange(1, len(sent))]


def _split(sent: bytes, source: random.Random) -> tuple[bytes, ...]:
    cuts = sorted(source.randrange(len(sent) + 1) for _ in range(source.randrange(1, 6)))
    return tuple(sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True) if start < end)


_KINDS = {
    "valid": _valid,
    "steering": _steering,
    "json": _bad_json,
    "framing": _framing,
    "chunks": _chunks,
    "smuggled": _smuggled,
    "pipelined": _pipelined,
    "large": _large,
    "lines": _lines,
    "flipped": _flipped,
    "noise": _noise,
    "split": _valid,
    "leaves": _partial,
    "steered": _steering,
    "broken": _framing,
}
