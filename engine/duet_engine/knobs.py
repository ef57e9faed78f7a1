"""Live settings of an engine: reading them strictly, and whether they change anything.

Invariant: a document that names an unknown setting or a bad value is refused whole; an older generation, or the same
settings once more, changes nothing.
"""

from __future__ import annotations

import json

from duet_engine.protocol import Document, Knobs, ProtocolError


def read_knobs(body: bytes) -> Knobs:
    """Knobs of a writer of this version or an older one are known whole; a newer one's unknown fields are ignored.

    Raises:
        ProtocolError: naming the first bad field.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"body: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ProtocolError("body: must be a JSON object")
    unknown = sorted(set(fields) - set(Knobs.model_fields))
    if unknown and fields.get("version", 1) <= Knobs.model_fields["version"].default:
        raise ProtocolError(f"Knobs: {', '.join(unknown)}: unknown; known are {', '.join(sorted(Knobs.model_fields))}")
    knobs = Knobs.read(body)
    if not knobs.chunk_candidates_tokens or min(knobs.chunk_candidates_tokens) < 1:
        raise ProtocolError("Knobs: chunk_candidates_tokens: must hold positive numbers of tokens, at least one")
    return knobs


def changes(knobs: Knobs, present: Knobs) -> bool:
    """Whether to take them over."""
    return knobs.generation >= present.generation and _content(knobs) != _content(present)


def _content(knobs: Knobs) -> dict[str, object]:
    """The settings alone, whoever wrote them and when."""
    return knobs.model_dump(exclude=set(Document.model_fields))
