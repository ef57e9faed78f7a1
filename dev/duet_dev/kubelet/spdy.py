"""The frames of SPDY/3.1 that `kubectl port-forward` speaks, in both directions. Pure.

Flow control is left out on both sides: Kubernetes' implementation has none either.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

# The dictionary that the protocol prescribes for its header compression: words with their lengths, then text.
_WORDS = (
    "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|age|"
    "allow|authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|"
    "content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|"
    "if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|"
    "proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|"
    "user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|"
    "keep-alive|origin"
)
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(struct.pack("!I", len(word)) + word.encode() for word in _WORDS.split("|")) + _TEXT.encode()

CONTROL, VERSION = 0x8000, 3
SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GO_AWAY = 1, 2, 3, 6, 7
LAST = 1
HEADER_BYTES = 8
STREAM_MASK = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Opened:
    stream: int
    headers: dict[str, str]
    last: bool


@dataclass(frozen=True, slots=True)
class Data:
    stream: int
    content: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Reset:
    stream: int


@dataclass(frozen=True, slots=True)
class Ping:
    identifier: int


@dataclass(frozen=True, slots=True)
class GoAway:
    pass


Frame = Opened | Data | Reset | Ping | GoAway


def _control(kind: int, payload: bytes, *, flags: int = 0) -> bytes:
    return struct.pack("!HHI", CONTROL | VERSION, kind, flags << 24 | len(payload)) + payload


def data(frame: Data) -> bytes:
    return struct.pack("!II", frame.stream, frame.last << 24 | len(frame.content)) + frame.content


def ping(identifier: int) -> bytes:
    return _control(PING, struct.pack("!I", identifier))


@dataclass(slots=True)
class HeaderWriter:
    """Header blocks of one connection's one direction: their compression carries over from block to block."""

    _compressor: "zlib._Compress" = field(default_factory=lambda: zlib.compressobj(zdict=DICTIONARY))

    def _block(self, headers: dict[str, str]) -> bytes:
        plain = struct.pack("!I", len(headers))
        for text in (text.encode() for pair in headers.items() for text in pair):
            plain += struct.pack("!I", len(text)) + text
        return self._compressor.compress(plain) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def opened(self, frame: Opened) -> bytes:
        payload = struct.pack("!IIH", frame.stream, 0, 0) + self._block(frame.headers)
        return _control(SYN_STREAM, payload, flags=frame.last)

    def accepted(self, stream: int) -> bytes:
        return _control(SYN_REPLY, struct.pack("!I", stream) + self._block({}))


@dataclass(slots=True)
class Reader:
    """Bytes in, however they were cut, frames out; kinds that don't matter here are skipped."""

    _pending: bytes = b""
    _decompressor: "zlib._Decompress" = field(default_factory=lambda: zlib.decompressobj(zdict=DICTIONARY))

    def feed(self, received: bytes) -> Iterator[Frame]:
        self._pending += received
        while len(self._pending) >= HEADER_BYTES:
            first, second = struct.unpack_from("!II", self._pending)
            flags, end = second >> 24, HEADER_BYTES + (second & 0xFFFFFF)
            if len(self._pending) < end:
                return
            payload, self._pending = self._pending[HEADER_BYTES:end], self._pending[end:]
            if first & CONTROL << 16 == 0:
                yield Data(first, payload, bool(flags & LAST))
            elif frame := self._control_frame(first & 0xFFFF, flags, payload):
                yield frame

    def _control_frame(self, kind: int, flags: int, payload: bytes) -> Frame | None:
        number = struct.unpack_from("!I", payload)[0] if len(payload) >= 4 else 0
        if kind == SYN_STREAM:
            return Opened(number & STREAM_MASK, self._headers(payload[10:]), bool(flags & LAST))
        if kind == RST_STREAM:
            return Reset(number & STREAM_MASK)
        if kind == PING:
            return Ping(number)
        return GoAway() if kind == GO_AWAY else None

    def _headers(self, block: bytes) -> dict[str, str]:
        plain = self._decompressor.decompress(block)
        (count,) = struct.unpack_from("!I", plain)
        position, texts = 4, []
        for _ in range(2 * count):
            (length,) = struct.unpack_from("!I", plain, position)
            texts.append(plain[position + 4 : position + 4 + length].decode())
            position += 4 + length
        return dict(zip(texts[::2], texts[1::2], strict=True))
