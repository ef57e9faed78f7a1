"""Reads the demand document of every Ready gateway pod.

Invariant: what didn't answer in time, or not with a whole and finite document, is named with its reason; the others'
answers count all the same.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from duet_engine.perf.replica import replica_from_document
from duet_engine.protocol import DEMAND_PATH, GATEWAY_ADMIN_PORT, GatewayDemand

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duet_operator.pods import Pod

_NOT_FINITE = re.compile(rb"[:\[,]\s*-?(NaN|Infinity)")


@dataclass(frozen=True, slots=True)
class Scrape:
    """What gateways answered, by pod name: each is in one of the two."""

    documents: Mapping[str, GatewayDemand]
    failures: Mapping[str, str]


class GatewayReader:
    """Asks gateways over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, *, timeout_seconds: float) -> None:
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def read(self, pods: Sequence[Pod]) -> Scrape:
        """The documents of these pods, all asked at once."""
        answers = await asyncio.gather(*(self._ask(pod) for pod in pods))
        by_pod = {pod.name: answer for pod, answer in zip(pods, answers, strict=True)}
        return Scrape(
            documents={name: answer for name, answer in by_pod.items() if isinstance(answer, GatewayDemand)},
            failures={name: answer for name, answer in by_pod.items() if isinstance(answer, str)},
        )

    async def _ask(self, pod: Pod) -> GatewayDemand | str:
        """The document, or why there is none."""
        url = f"http://{pod.endpoint('admin', GATEWAY_ADMIN_PORT)}{DEMAND_PATH}"
        try:
            async with self._session.get(url, timeout=self._timeout) as response:
                if response.status != 200:
                    return f"answered {response.status}"
                body = await response.read()
        except TimeoutError:
            return f"no answer in {self._timeout.total:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"unreachable: {str(error) or type(error).__name__}"
        if _NOT_FINITE.search(body):
            return "sent a number that isn't one"
        try:
            document = GatewayDemand.read(body)
            for profile in document.profiles:
                replica_from_document(profile.replica)
            return document
        except ValueError as error:
            return f"sent what can't be read: {error}"
