"""What a change of a field does: reaches what runs, or replaces pods; and of which Deployments.

Invariant: every field of the spec is live but for those below `ROLLING`; a test changes each of them and looks at the
pod templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

if TYPE_CHECKING:
    from duet_operator.api.spec import DuetSpec

Pods = Literal["prefill", "decode", "gateway"]

SHARED = ("model", "engine")
"""What engines of both pools have in common: workers that differ in it don't hand over KV caches to each other."""

ROLLING: Mapping[str, tuple[Pods, ...]] = {
    "model": ("prefill", "decode"),
    "engine": ("prefill", "decode"),
    "pools.prefill.gpu": ("prefill",),
    "pools.prefill.tensorParallelSize": ("prefill",),
    "pools.prefill.template": ("prefill",),
    "pools.decode.gpu": ("decode",),
    "pools.decode.tensorParallelSize": ("decode",),
    "pools.decode.template": ("decode",),
    "drain.timeoutSeconds": ("prefill", "decode"),
    "gateway.tls": ("gateway",),
    "gateway.apiKeys": ("gateway",),
    "gateway.template": ("gateway",),
}
"""Path of a part of the spec -> whose pods a change of it replaces."""

LIVE_INSIDE = ("pools.prefill.gpu.pricePerHourMilli", "pools.decode.gpu.pricePerHourMilli")
"""Fields inside of a rolling part that are live all the same."""


def rolled_by(path: str) -> tuple[Pods, ...]:
    """Whose pods a change of the field at `path` replaces; nobody's: it's live."""
    if path in LIVE_INSIDE:
        return ()
    return next((pods for part, pods in ROLLING.items() if path == part or path.startswith(f"{part}.")), ())


def rolling_paths(pods: Pods) -> tuple[str, ...]:
    """The parts of the spec that a pod template of these pods is made from."""
    return tuple(part for part, rolled in ROLLING.items() if pods in rolled)


def parts(spec: DuetSpec, paths: Iterable[str]) -> dict[str, Any]:
    """Those parts of a spec by their paths, without what is live inside of them."""
    document = spec.to_dict()
    for path in LIVE_INSIDE:
        _put(document, path, None)
    found = {path: _get(document, path) for path in paths}
    return {path: value for path, value in found.items() if value is not None}


def same_parts(recorded: Mapping[str, Any], spec: DuetSpec, paths: Iterable[str]) -> bool:
    """Whether a spec still says in these parts what was once recorded of it, perhaps by another version.

    What was recorded is read as this version reads it: a field that is new since then has its default on both sides.
    """
    paths = tuple(paths)
    present = parts(spec, paths)
    wanted = {path: recorded[path] for path in paths if path in recorded}
    if wanted == present:
        return True
    document = spec.to_dict()
    for path in paths:
        _put(document, path, wanted.get(path))
    try:
        return parts(type(spec).model_validate(document), paths) == present
    except ValidationError:
        return False


def _get(document: object, path: str) -> object:
    for name in path.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _put(document: dict[str, Any], path: str, value: object) -> None:
    """Set a part, or with None take it away."""
    *parents, last = path.split(".")
    for name in parents:
        document = document.setdefault(name, {})
    if value is None:
        document.pop(last, None)
    else:
        document[last] = value
