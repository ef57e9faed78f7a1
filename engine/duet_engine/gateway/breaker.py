"""When a worker that fails requests is left alone, and when it is tried again.

Invariant: pure but for its own counts; time comes in as an argument. Half-open lets one request through at a time.
"""

from __future__ import annotations

FAILURES_TO_EJECT = 3
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class Breaker:
    """Closed: all pass. Open: none until the pause is over. Then half-open: one passes and its end decides."""

    def __init__(self) -> None:
        self.ejections_total = 0
        self._failures = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._open_until: float | None = None
        self._probing = False

    @property
    def ejected(self) -> bool:
        return self._open_until is not None

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        if self._open_until is None:
            return True
        return not self._probing and now >= self._open_until

    def sent(self) -> bool:
        """A request goes out; True when it is the probe, whose end must be told to `probe_ended`."""
        self._probing = self.ejected
        return self._probing

    def began(self) -> None:
        """A first token came: others may come again, but one failure of such an answer ejects anew."""
        if self.ejected:
            self._failures = FAILURES_TO_EJECT - 1
            self._open_until = None
            self._probing = False

    def succeeded(self) -> None:
        """A request ended well."""
        self._failures = 0
        self._open_until = None
        self._probing = False
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def probe_ended(self) -> None:
        """However it ended: another may follow when the pause allows it."""
        self._probing = False

    def failed(self, now: float) -> None:
        """A request failed for the worker's fault."""
        self._failures += 1
        if self.ejected:
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        elif self._failures < FAILURES_TO_EJECT:
            return
        self.ejections_total += 1
        self._open_until = now + self._pause_seconds
