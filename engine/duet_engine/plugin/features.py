"""Which features of SGLang work together with which of Duet's; docs/deflection.md has the same table.

Invariant: a combination that isn't here as working is refused by name, never wrong.
"""

from __future__ import annotations

from duet_engine.protocol import Role

WORKS = "works"
MODES = ("deflected", "mixed", "split", "look_ahead")
NOT_BUILT = "not built yet: all SMs run one step at a time"
_DEFLECTED: dict[str, str] = {}
"""Feature -> what a deflected request with it gets; the deflection module fills it."""
_MIXED: dict[str, str] = {}
"""The same for steps that hold prompts and residents, where that is another matter."""


def declare_deflected(deflected: dict[str, str], *, mixed: dict[str, str] | None = None) -> None:
    """What the deflection module says of each feature in a deflected request, and of those in mixed steps apart."""
    _DEFLECTED.update(deflected)
    _MIXED.update(mixed or {})


def matrix(role: Role) -> dict[str, dict[str, str]]:
    """Feature -> mode -> "works", or why it is refused."""
    not_here = f"a {role} worker takes no deflected prompts"
    known = _DEFLECTED or {"generate": "the deflection module isn't loaded"}
    return {
        feature: {
            "deflected": verdict if role is Role.DECODE else not_here,
            "mixed": _MIXED.get(feature, verdict) if role is Role.DECODE else not_here,
            "split": NOT_BUILT,
            "look_ahead": NOT_BUILT,
        }
        for feature, verdict in known.items()
    }
