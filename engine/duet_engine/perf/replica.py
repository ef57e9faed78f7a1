"""A replica's performance model as a document, so that one process can tell another how fast it is.

Invariant: whoever reads the document predicts the same times as whoever wrote it, without knowing the model or the GPU
by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any, TypeVar

from duet_engine.perf.efficiencies import from_document, to_document
from duet_engine.perf.hardware import Gpu
from duet_engine.perf.interface import Basis
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.shape import Experts, LatentAttention, ModelShape
from duet_engine.perf.sm_curves import SmCurve

Part = TypeVar("Part")
REMEMBERED_REPLICAS = 64


def replica_document(roofline: Roofline) -> dict[str, Any]:
    """Everything that the model's predictions depend on, as JSON values."""
    return {
        "shape": {name: value for name, value in asdict(roofline.shape).items() if value is not None},
        "gpu": asdict(roofline.gpu),
        "ranks": roofline.ranks,
        "calibration": to_document(roofline.calibrated),
        "curve": asdict(roofline.curve),
    }


def replica_from_document(document: Mapping[str, Any]) -> Roofline:
    """The model that such a document describes; equal documents share one, and what it remembers.

    Raises:
        ValueError: naming what is missing or wrong. What a later version added is ignored.
    """
    try:
        return _replica(json.dumps(document, sort_keys=True))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a replica's document isn't complete: {error}") from error


@lru_cache(REMEMBERED_REPLICAS)
def _replica(text: str) -> Roofline:
    document = json.loads(text)
    shape, curve = document["shape"], document["curve"]
    experts, latent = shape.get("experts"), shape.get("latent")
    parts = {
        "experts": _part(Experts, experts) if experts else None,
        "latent": _part(LatentAttention, latent) if latent else None,
    }
    return Roofline(
        _part(ModelShape, shape | parts),
        _part(Gpu, document["gpu"] | {"figures": Basis(document["gpu"].get("figures", Basis.DATA_SHEET))}),
        ranks=document["ranks"],
        calibrated=from_document(document["calibration"]),
        curve=SmCurve(
            sm_shares=tuple(curve["sm_shares"]),
            compute_shares=tuple(curve["compute_shares"]),
            bandwidth_shares=tuple(curve["bandwidth_shares"]),
            basis=Basis(curve["basis"]),
        ),
    )


def _part(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """One of the dataclasses, from the fields that this version knows."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # dataclasses all
    return kind(**{name: value for name, value in values.items() if name in known})
