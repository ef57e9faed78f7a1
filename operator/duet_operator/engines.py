"""Speaks with engines: drain and knobs of one worker over HTTP.

Invariant: an answer is a whole document or an EngineError that says why there is none; nothing is retried here, because
the next pass does.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from duet_engine.protocol import DRAIN_PATH, ENGINE_PORT, KNOBS_PATH, DrainRequest, DrainStatus, ProtocolError
from duet_operator.cluster import ClusterError

if TYPE_CHECKING:
    from duet_engine.protocol import Knobs
    from duet_operator.pods import Credentials, Pod


class EngineError(Exception):
    """An engine that didn't answer, or not as agreed."""


class EngineClient:
    """Asks engines by their pods' addresses."""

    def __init__(self, session: aiohttp.ClientSession, *, timeout_seconds: float, credentials: Credentials) -> None:
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._credentials = credentials

    async def drain(self, pod: Pod, *, lease_seconds: float, reason: str) -> DrainStatus:
        """Start or renew its drain."""
        request = DrainRequest(
            lease_seconds=lease_seconds, requested_by="duet-operator", reason=reason, worker=pod.name
        )
        return await self._ask("PUT", pod, request.write())

    async def drain_status(self, pod: Pod) -> DrainStatus:
        """How its drain stands."""
        return await self._ask("GET", pod)

    async def serve_again(self, pod: Pod) -> DrainStatus:
        """End its drain."""
        return await self._ask("DELETE", pod)

    async def set_knobs(self, pod: Pod, knobs: Knobs) -> None:
        """Put live settings in force."""
        await self._send("PUT", pod, KNOBS_PATH, knobs.write())

    async def _ask(self, method: str, pod: Pod, body: bytes | None = None) -> DrainStatus:
        try:
            status = DrainStatus.read(await self._send(method, pod, DRAIN_PATH, body))
        except ProtocolError as error:
            raise EngineError(f"{pod.name}: {error}") from error
        if status.worker != pod.name:
            # Addresses are used again: this one is another pod's by now, whose word says nothing about ours.
            raise EngineError(f"{pod.name}: {status.worker} answered at its address")
        return status

    async def _send(self, method: str, pod: Pod, path: str, body: bytes | None) -> bytes:
        if not pod.address:
            raise EngineError(f"{pod.name}: it has no address yet")
        url = f"http://{pod.endpoint('http', ENGINE_PORT)}{path}"
        try:
            headers = {"Content-Type": "application/json", **await self._credentials(pod)}
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=self._timeout
            ) as response:
                content = await response.read()
        except ClusterError as error:
            raise EngineError(f"{pod.name}: no token to show it: {error}") from error
        except TimeoutError as error:
            raise EngineError(f"{pod.name}: no answer in {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"{pod.name}: unreachable: {str(error) or type(error).__name__}") from error
        if response.status != HTTPStatus.OK:
            raise EngineError(f"{pod.name}: {method} {path} answered {response.status}: {content[:200]!r}")
        return content
