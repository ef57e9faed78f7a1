"""Numbers as people read them; what nobody measured is a dash, never zero."""

from __future__ import annotations


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.0f} ms"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
