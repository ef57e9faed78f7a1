"""One form for a document, and its short hash.

Invariant: equal documents have equal forms, whatever the order of their keys.
"""

from __future__ import annotations

import hashlib
import json

HASH_CHARACTERS = 10


def canonical(document: object) -> str:
    """The document as compact JSON with sorted keys."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def digest(document: object) -> str:
    """A hash of it that fits in a label."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()[:HASH_CHARACTERS]
