"""A replica's performance model as a document, so that one process can tell another how fast it is.

Invariant: whoever reads the document predicts the same times as whoever wrote it, without knowing the model or the GPU
by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from duet_engine.perf.efficiencies import from_document, to_document
from duet_engine.perf.hardware import Gpu
from duet_engine.perf.interface import Basis
from duet_engine.perf.roofline import Roofline
from duet_engine.perf.shape import Experts, LatentAttention, ModelShape
from duet_engine.perf.sm_curves import SmCurve


def replica_document(roofline: Roofline) -> dict[str, Any]:
    """Everything that the model's predictions depend on, as JSON values."""
    return {
        "shape": asdict(roofline.shape),
        "gpu": asdict(roofline.gpu),
        "ranks": roofline.ranks,
        "calibration": to_document(roofline.calibrated),
        "curve": asdict(roofline.curve),
    }


def replica_from_document(document: Mapping[str, Any]) -> Roofline:
    """The model that such a document describes.

    Raises:
        ValueError: naming what is missing or unknown.
    """
    try:
        shape, curve = dict(document["shape"]), dict(document["curve"])
        experts, latent = shape.pop("experts", None), shape.pop("latent", None)
        return Roofline(
            ModelShape(
                **shape,
                experts=Experts(**experts) if experts else None,
                latent=LatentAttention(**latent) if latent else None,
            ),
            Gpu(**document["gpu"]),
            ranks=document["ranks"],
            calibrated=from_document(document["calibration"]),
            curve=SmCurve(
                sm_shares=tuple(curve["sm_shares"]),
                compute_shares=tuple(curve["compute_shares"]),
                bandwidth_shares=tuple(curve["bandwidth_shares"]),
                basis=Basis(curve["basis"]),
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a replica's document isn't complete: {error}") from error
