"""Kopf: the watches that feed the cache.

Invariant: event handlers only, so Kopf writes nothing: no finalizer, no annotation, no Event. The API server itself
filters by label, so what isn't ours never gets here. All acting is the control loop's.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import kopf

from duet_operator.api.v1alpha1 import GROUP
from duet_operator.cluster import CHUNK_SIZE, DUET, IN_CLUSTER_VARIABLE, NODE, Kind
from duet_operator.loop import CHILD_KINDS, selector

if TYPE_CHECKING:
    from collections.abc import Callable

    from duet_operator.nodes import Nodes
    from duet_operator.world import World

WORKER_IDLE_SECONDS = 0.5
WATCHED = (DUET, *CHILD_KINDS)


def registry(
    world: World, *, on_listing: Callable[[str], None], nodes: Nodes | None = None, kubeconfig: str | None = None
) -> kopf.OperatorRegistry:
    """Handlers that put every event into `world`, and those of nodes into `nodes` where they may be watched.

    `on_listing` is called with its kind for each object that a watch lists when it begins or begins anew: what was
    deleted in between is in no list and has no event.
    """
    handlers = kopf.OperatorRegistry()

    async def seen(event: kopf.RawEvent, **_: Any) -> None:  # noqa: ANN401 - Kopf's keywords
        body = dict(event["object"])
        if event["type"] is None:
            on_listing(str(body["kind"]))
        if event["type"] == "DELETED":
            world.remove(body)
        else:
            world.put(body)

    for kind in WATCHED:
        kopf.on.event(*_resource(kind), id=kind.plural, registry=handlers)(seen)

    if nodes is not None:

        async def node_seen(event: kopf.RawEvent, **_: Any) -> None:  # noqa: ANN401 - Kopf's keywords
            (nodes.remove if event["type"] == "DELETED" else nodes.put)(event["object"])

        kopf.on.event(*_resource(NODE), id=NODE.plural, registry=handlers)(node_seen)

    @kopf.on.login(registry=handlers)
    async def login(**keywords: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401 - Kopf's keywords
        if kubeconfig is None and IN_CLUSTER_VARIABLE in os.environ:
            return kopf.login_with_service_account(**keywords)
        return kopf.login_with_kubeconfig(**keywords)

    return handlers


def settings() -> kopf.OperatorSettings:
    """Kopf's settings: nothing is posted or stored, nothing foreign is watched."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    # Neither CRDs nor namespaces are watched: two rights less, and our own kinds are there before the watches begin.
    chosen.scanning.disabled = True
    chosen.watching.chunk_size = CHUNK_SIZE
    # A worker of Kopf keeps the object that it saw last until it ends: of thousands of pods that would be all at once.
    chosen.queueing.idle_timeout = WORKER_IDLE_SECONDS
    chosen.persistence.finalizer = f"{GROUP}/finalizer"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{GROUP}")
    for kind in CHILD_KINDS:
        chosen.watching.label_selectors[_resource(kind)] = selector(kind)
    # Kopf tells of each handler that succeeded, which for events is each event.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    return chosen


def _resource(kind: Kind) -> tuple[str, str, str]:
    return kind.group, kind.api_version.rpartition("/")[2], kind.plural
