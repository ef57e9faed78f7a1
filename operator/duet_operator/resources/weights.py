"""Where engines get the model's weights from: the parts of their pods that `spec.model.source` decides.

Invariant: weights on a volume or in an image are mounted read-only, and engines that have such weights, or weights of
their own, are told not to ask the Hugging Face hub. A token is named, never read: the kubelet takes it from its Secret.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duet_operator.api.v1alpha1 import HuggingFaceSource, ModelSpec

Manifest = dict[str, Any]

MODEL_DIRECTORY = "/models"
CACHE_DIRECTORY = "/var/cache/huggingface"
VOLUME = "model"
CACHE_VOLUME = "model-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What an engine's pod has of the weights' source."""

    path: str
    """What the engine loads: an id of the hub or a directory in its container."""
    environment: list[Manifest]
    volumes: list[Manifest]
    mounts: list[Manifest]


def weights(model: ModelSpec) -> Weights:
    """The parts of an engine's pod that its model's source decides."""
    source = model.source
    if source is not None and source.persistent_volume_claim is not None:
        volume = source.persistent_volume_claim
        claim = {"claimName": volume.claim_name, "readOnly": True}
        return _mounted({"persistentVolumeClaim": claim}, directory=volume.path)
    if source is not None and source.image is not None:
        image = {"reference": source.image.reference, "pullPolicy": source.image.pull_policy}
        return _mounted({"image": image}, directory=source.image.path)
    if model.id.startswith("/"):
        environment = _variables(DUET_MODEL_PATH=model.id, HF_HUB_OFFLINE="1")
        return Weights(path=model.id, environment=environment, volumes=[], mounts=[])
    return _downloaded(model, source.hugging_face if source else None)


def _mounted(source: Manifest, *, directory: str | None) -> Weights:
    """Weights that are there before the engine starts. The whole of it is mounted: a part of a hub's cache links to
    files beside it."""
    path = posixpath.normpath(posixpath.join(MODEL_DIRECTORY, directory or ""))
    return Weights(
        path=path,
        environment=_variables(DUET_MODEL_PATH=path, HF_HUB_OFFLINE="1"),
        volumes=[{"name": VOLUME, **source}],
        mounts=[{"name": VOLUME, "mountPath": MODEL_DIRECTORY, "readOnly": True}],
    )


def _downloaded(model: ModelSpec, hub: HuggingFaceSource | None) -> Weights:
    """Weights that the engine fetches into a cache, which outlives its container and, as a claim, its pod."""
    environment = _variables(DUET_MODEL_PATH=model.id, HF_HOME=CACHE_DIRECTORY)
    if model.revision is not None:
        environment += _variables(DUET_MODEL_REVISION=model.revision)
    if hub is not None and hub.token_secret_ref is not None:
        token = {"name": hub.token_secret_ref.name, "key": hub.token_secret_ref.key}
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}})
    claim = hub.cache_claim_name if hub else None
    cache: Manifest = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    return Weights(
        path=model.id,
        environment=environment,
        volumes=[{"name": CACHE_VOLUME, **cache}],
        mounts=[{"name": CACHE_VOLUME, "mountPath": CACHE_DIRECTORY}],
    )


def _variables(**values: str) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items()]
