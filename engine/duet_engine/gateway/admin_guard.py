"""Who may change anything through the admin port: the operator, by its token. Reading is open to all, like metrics.

Invariant: a request that may change something reaches no handler before the guard has let it in.
"""

from __future__ import annotations

from http import HTTPMethod
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from duet_engine.authentication import Guard

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp.typedefs import Handler, Middleware

READING = frozenset({HTTPMethod.GET, HTTPMethod.HEAD, HTTPMethod.OPTIONS})


def admin_guard(trust_file: Path | None) -> Middleware:
    """Lets in what the trust document allows; everybody where none is named, as outside of a cluster."""
    guard = Guard(trust_file=trust_file, open_paths=(), server="gateway")

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method not in READING:
            denial = guard.denial(request.path, request.headers.get(hdrs.AUTHORIZATION))
            if denial is not None:
                return web.Response(
                    status=denial.status, headers=denial.headers, body=denial.body(), content_type="application/json"
                )
        return await handler(request)

    return guarded
