"""What of a request's head decides where its body ends, and how its fields are named.

Invariant: a head that another parser might read otherwise is refused with what to send instead.
"""

from __future__ import annotations

from duet_engine.gateway.wire.messages import Headers, Refusal

_COMMON = (
    *("Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Connection", "Content-Length"),
    *(
        "Content-Type",
        "Cookie",
        "Expect",
        "Forwarded",
        "Host",
        "Origin",
        "Pragma",
        "Referer",
        "Traceparent",
        "Tracestate",
    ),
    *(
        "Tracestate",
        "Transfer-Encoding",
        "User-Agent",
        "X-Duet-Class",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Request-Id",
    ),
)
COMMON_NAMES = {spelt.encode(): name.lower() for name in _COMMON for spelt in (name, name.lower())}
"""Lower-case names of the header fields that most requests have."""


def check_framing(headers: Headers, version: str) -> None:
    """What the parser lets pass though another one in front of this gateway might read it otherwise.

    Raises:
        Refusal: saying what to send instead.
    """
    if version not in ("1.0", "1.1"):
        raise Refusal(505, f"HTTP/{version} isn't served; send HTTP/1.1")
    if version == "1.1" and not headers.get("host"):
        raise Refusal(400, "host: missing")
    encoding = headers.get("transfer-encoding")
    if encoding is not None:
        if version == "1.0":
            raise Refusal(400, "transfer-encoding: not known to HTTP/1.0; send content-length")
        if encoding.lower() != "chunked":
            raise Refusal(501, f"transfer-encoding: only chunked is served, got {encoding!r}")
    if "upgrade" in headers:
        raise Refusal(400, "upgrade: other protocols aren't served; send the request without it")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, f"content-encoding: bodies must be plain, got {headers['content-encoding']!r}")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise Refusal(417, f"expect: only 100-continue is served, got {headers['expect']!r}")
