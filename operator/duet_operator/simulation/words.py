"""Figures as people read them.

Invariant: what is absent is a dash, never a zero.
"""

from __future__ import annotations

ABSENT = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """A share; nothing that isn't all is rounded up to 100 %."""
    if share is None:
        return ABSENT
    text = f"{100 * share:.{digits}f}"
    if share < 1 and float(text) == 100:
        text = f"{100 - 10**-digits:.{digits}f}"
    return f"{text} %"


def seconds(value: float | None) -> str:
    """A latency, in the unit that fits it."""
    if value is None:
        return ABSENT
    if value < 0.9995:
        return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.1f} ms"
    return f"{value:.2f} s" if value < 99.95 else f"{value:.0f} s"


def number(value: float | None, digits: int = 3) -> str:
    """Three digits, thousands with a k, millions with an M."""
    if value is None:
        return ABSENT
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (size == 1e6 and abs(value) >= size):
            return f"{value / size:.{digits}g}{letter}"
    return f"{value:.{max(digits, len(str(int(abs(value)))))}g}"


def counts(prefill: int, decode: int) -> str:
    """Workers of both pools."""
    return f"{prefill} + {decode}"
