"""A whole list, put into the cache as the control loop does."""

from collections.abc import Sequence
from typing import Any

from duet_operator.world import World


def relist(world: World, kind: str, bodies: Sequence[dict[str, Any]], **options: Any) -> None:
    """As the loop lists: each is put, then what was in no page is forgotten."""
    for body in bodies:
        world.put(body)
    listed = {(body["metadata"]["namespace"], body["metadata"]["name"]) for body in bodies}
    world.forget_unlisted(kind, listed, **options)
