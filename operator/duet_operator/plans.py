"""The routing plan that gateways get: what the operator knows and a single gateway doesn't.

Invariant: a plan is advice under a lease. Where none arrives gateways go by what they see, so a failed push is only
logged; the next pass repeats it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from duet_engine.protocol import GATEWAY_ADMIN_PORT, PLAN_PATH, RoutingPlan
from duet_operator.cluster import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duet_engine.protocol import ClassPlan
    from duet_operator.planner.types import Decision
    from duet_operator.pods import Credentials, Pod

logger = logging.getLogger(__name__)

LONGEST_TOLD = 200
SHARE_DIGITS = 1
"""A share of deflected prompts that moves by less is no news."""


def routing_plan(
    decision: Decision,
    *,
    gateways: int,
    generation: int,
    lease_seconds: float,
    classes: tuple[ClassPlan, ...] = (),
) -> RoutingPlan:
    """The plan for each of so many gateways: equal shares, as Services spread requests evenly.

    `classes` are there while demand exceeds capacity.
    """
    return RoutingPlan(
        generation=generation,
        lease_seconds=lease_seconds,
        saturated=bool(classes),
        dispatch_share=1.0 / max(gateways, 1),
        deflected_share=round(min(max(decision.deflected_share, 0.0), 1.0), SHARE_DIGITS),
        classes=classes,
    )


@dataclass(frozen=True, slots=True)
class _Pushed:
    plan: RoutingPlan
    time_seconds: float


class PlanPusher:
    """Hands plans to gateways over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, *, timeout_seconds: float, credentials: Credentials) -> None:
        self._session = session
        self._credentials = credentials
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._pushed: dict[str, _Pushed] = {}
        """Pod uid -> what it took last."""

    async def push(self, pods: Sequence[Pod], plan: RoutingPlan, *, now_seconds: float) -> None:
        """To each of one object's gateways that has another plan, or the same one for half its lease."""
        due = [pod for pod in pods if self._is_due(pod, plan, now_seconds)]
        if due:
            await self._push_all(due, plan, now_seconds)
        # Past its lease an entry means nothing, so those of pods that are gone go with it.
        self._pushed = {
            uid: pushed
            for uid, pushed in self._pushed.items()
            if now_seconds - pushed.time_seconds < pushed.plan.lease_seconds
        }

    def _is_due(self, pod: Pod, plan: RoutingPlan, now_seconds: float) -> bool:
        pushed = self._pushed.get(pod.uid)
        return pushed is None or pushed.plan != plan or now_seconds - pushed.time_seconds > plan.lease_seconds / 2

    async def _push_all(self, pods: Sequence[Pod], plan: RoutingPlan, now_seconds: float) -> None:
        try:
            credentials = await self._credentials(pods[0])
        except ClusterError as error:
            logger.info("%s/%s took no plan: no token to show it: %s", pods[0].namespace, pods[0].owner, error)
            return
        headers = {"Content-Type": "application/json", **credentials}
        await asyncio.gather(*(self._push(pod, plan, headers, now_seconds) for pod in pods))

    async def _push(self, pod: Pod, plan: RoutingPlan, headers: dict[str, str], now_seconds: float) -> None:
        url = f"http://{pod.endpoint('admin', GATEWAY_ADMIN_PORT)}{PLAN_PATH}"
        try:
            async with self._session.put(url, data=plan.write(), headers=headers, timeout=self._timeout) as response:
                if response.status == HTTPStatus.OK:
                    self._pushed[pod.uid] = _Pushed(plan, now_seconds)
                else:
                    told = (await response.read())[:LONGEST_TOLD].decode(errors="replace")
                    logger.info(
                        "%s/%s took no plan: it answered %d: %s", pod.namespace, pod.name, response.status, told
                    )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.info("%s/%s took no plan: %s", pod.namespace, pod.name, str(error) or type(error).__name__)
