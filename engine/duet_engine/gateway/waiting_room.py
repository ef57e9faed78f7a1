"""Who may wait at the gateway, and for how long: bounds in number, bytes and time, and the gate's early word.

Invariant: a request that is turned away hears it before it waits, or when its time is over, never later; what waits
stays within the bounds, retries apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from duet_engine.gateway.errors import GatewayError
from duet_engine.gateway.live_settings import LiveSettings
from duet_engine.gateway.requests import ClientRequest
from duet_engine.gateway.settings import Limits
from duet_engine.policy.class_gate import ClassGate
from duet_engine.policy.queueing import Waiting

FULL_RETRY_SHARE = 0.1
"""Of the longest hold: when to come back to a full room."""
AnyWaiting = TypeVar("AnyWaiting", bound="Held")


class Held(Waiting):
    """A request that waits since then."""

    __slots__ = ("since",)
    since: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of this process."""

    requests: int
    bytes: int
    seconds: float


class WaitingRoom:
    """Of one gateway process, which is one of so many that share the bounds of their pod."""

    def __init__(
        self,
        limits: Limits,
        *,
        live: Callable[[], LiveSettings],
        gate: Callable[[float], ClassGate | None],
        processes: int = 1,
    ) -> None:
        self._limits = limits
        self._live = live
        self._gate = gate
        self._processes = processes
        self._bytes = 0
        self._nobody_since: float | None = None

    def bounds(self) -> Bounds:
        """The object's, if it has some, else those that the gateway was started with."""
        hold, limits = self._live().hold, self._limits
        if hold is None:
            return Bounds(limits.held_requests, limits.held_bytes, limits.hold_timeout_seconds)
        return Bounds(-(-hold.requests // self._processes), -(-hold.bytes // self._processes), hold.seconds)

    def entered(self, request: ClientRequest) -> None:
        self._bytes += request.size_bytes

    def left(self, request: ClientRequest) -> None:
        self._bytes -= request.size_bytes

    def check(self, request: ClientRequest, waiting: Sequence[Waiting], now: float, *, why: Callable[[], str]) -> None:
        """Before a new request waits; `why` says what keeps those that do.

        Raises:
            GatewayError: 429, with when to come back.
        """
        gate = self._gate(now)
        if gate is not None:
            self._ask(gate, request, waiting)
        bounds = self.bounds()
        if len(waiting) >= bounds.requests or self._bytes + request.size_bytes > bounds.bytes:
            reason = f"the gateway's queue is full; {why()}" if waiting else "the gateway's queue is full"
            raise GatewayError(429, reason, retry_after_seconds=bounds.seconds * FULL_RETRY_SHARE)

    def _ask(self, gate: ClassGate, request: ClientRequest, waiting: Sequence[Waiting]) -> None:
        name = request.class_name
        retry_after_seconds = gate.retry_after_seconds(
            name,
            waiting=sum(each.class_name == name for each in waiting),
            ttft_objective_seconds=self._live().objective_of(name).ttft_seconds,
        )
        if retry_after_seconds is not None:
            message = f"more is asked for than there are workers for, and requests of class {name} have to wait"
            raise GatewayError(429, message, retry_after_seconds=retry_after_seconds)

    def overdue(self, waiting: Iterable[AnyWaiting], now: float, *, nobody: bool) -> list[AnyWaiting]:
        """Those whose time is over. `nobody`: no worker is there at all, so that only a new one could help."""
        if not nobody:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = now
        longest, since = self._limits.queue_timeout_seconds, self._nobody_since
        hold_seconds = self.bounds().seconds
        return [
            each
            for each in waiting
            if now - each.since > longest or (since is not None and now - max(each.since, since) > hold_seconds)
        ]
