"""From a pod's image reference to the local command that stands for it."""

from collections.abc import Mapping

from duet_dev.kubelet.config import Image


def base_name(reference: str) -> str:
    """`registry:5000/group/name:tag@sha256:…` names the image `name`."""
    return reference.partition("@")[0].rpartition("/")[2].partition(":")[0]


def find(reference: str, images: Mapping[str, Image]) -> Image | None:
    return images.get(base_name(reference))
