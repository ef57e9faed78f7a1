"""Kubernetes quantities ("500m", "2Gi", "8") as exact numbers."""

import math
import re
from fractions import Fraction

_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")


def parse(text: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity; write a number with an optional suffix such as m, k, Mi or Gi")
    return Fraction(match[1]) * _SUFFIXES[match[2]]


def in_units(text: str, divisor: str) -> int:
    """How many divisors the quantity holds, rounded up, as a resourceFieldRef reports it."""
    unit = parse(divisor)
    return math.ceil(parse(text) / (unit or 1))
