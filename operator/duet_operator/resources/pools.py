"""The two pools: a Deployment each, whose pods are engines.

Invariant: no manifest to be applied names `spec.replicas` (applying it without the number would reset it to one); both
pools carry the same revision exactly when their engines can work together; a change of a live field of the spec changes
no pod template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duet_engine.protocol import BOOTSTRAP_PORT, ENGINE_PORT, LIVE_PATH, READY_PATH
from duet_operator.resources.canonical import digest
from duet_operator.resources.labels import REVISION, labels, selector
from duet_operator.resources.names import live_name, pool_name
from duet_operator.resources.owner import metadata
from duet_operator.resources.pod_parts import patched_template, pod_environment, probe
from duet_operator.resources.strategic_merge import merge
from duet_operator.resources.trust import engine_mounts, engine_variables, engine_volumes
from duet_operator.resources.weights import weights

if TYPE_CHECKING:
    from duet_engine.protocol import Role
    from duet_operator.api.v1alpha1 import DuetDeployment, EnvironmentVariable
    from duet_operator.resources.images import Images

Manifest = dict[str, Any]

CONTAINER = "engine"
GRACE_BEYOND_DRAIN_SECONDS = 45
"""SGLang needs up to 23 s to stop after SIGTERM; the rest is for the drain's own end."""
KEPT_REVISIONS = 3
RELOCATION_ANNOTATION = "duetserve.io/relocating"
"""On a pool's Deployment while workers wait for their successors to serve: `3/4` is three wanted, four for now."""
LIVE_ITL_KEY = "itlMilliseconds"


def pool_deployment(
    deployment: DuetDeployment, role: Role, images: Images, *, kept_revision: str | None = None
) -> Manifest:
    """The pool's Deployment for server-side apply, without `replicas`.

    `kept_revision` is one that the other pool's engines, which these can work with, were given earlier.

    Raises:
        InvalidTemplateError: where a template of the spec can't be merged.
    """
    spec = deployment.spec
    rollout = spec.rollout
    grace_seconds = spec.drain.timeout_seconds + GRACE_BEYOND_DRAIN_SECONDS
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployment, pool_name(deployment.metadata.name, role), role=role.value),
        "spec": {
            "selector": {"matchLabels": selector(deployment.metadata.name, role.value)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable},
            },
            "progressDeadlineSeconds": grace_seconds + spec.scaling.pending_deadline_seconds,
            "revisionHistoryLimit": KEPT_REVISIONS,
            "template": _pod_template(deployment, role, images, kept_revision or revision(deployment, images)),
        },
    }


def rolling(manifest: Manifest, *, max_surge: int, max_unavailable: int, paused: bool) -> Manifest:
    """The Deployment with another way to roll. One that somebody else paused stays so: the field is named only here."""
    strategy = {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": max_surge, "maxUnavailable": max_unavailable},
    }
    pause = {"paused": True} if paused else {}
    return {**manifest, "spec": {**manifest["spec"], "strategy": strategy, **pause}}


def relocating(manifest: Manifest, note: str | None) -> Manifest:
    """The Deployment with a note of how many of its pods are wanted for good."""
    if note is None:
        return manifest
    annotations = {**manifest["metadata"].get("annotations", {}), RELOCATION_ANNOTATION: note}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def pool_creation(deployment: DuetDeployment, role: Role, images: Images, *, replicas: int) -> Manifest:
    """The pool's Deployment for its creation: the only time that `replicas` stands in it."""
    manifest = pool_deployment(deployment, role, images)
    return {**manifest, "spec": {"replicas": replicas, **manifest["spec"]}}


def revision(deployment: DuetDeployment, images: Images) -> str:
    """Hash of what both pools' engines share; workers of unequal revision don't hand over KV caches to each other."""
    spec = deployment.spec
    engine = spec.engine
    return digest(
        {
            "image": images.engine,
            "model": spec.model.to_dict(),
            "args": list(engine.args),
            "env": [variable.to_dict() for variable in engine.env],
            "transferBackend": engine.transfer_backend,
            "template": engine.template,
        }
    )


def _pod_template(deployment: DuetDeployment, role: Role, images: Images, own_revision: str) -> Manifest:
    spec, name = deployment.spec, deployment.metadata.name
    template: Manifest = {
        "metadata": {"labels": labels(name, role.value)},
        "spec": {
            **images.pod_fields(),
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": spec.drain.timeout_seconds + GRACE_BEYOND_DRAIN_SECONDS,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [_container(deployment, role, images, own_revision)],
            "volumes": [
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
                *engine_volumes(deployment),
                *weights(spec.model).volumes,
            ],
        },
    }
    for path, patch in (
        ("spec.engine.template", spec.engine.template),
        (f"spec.pools.{role.value}.template", spec.pool(role).template),
    ):
        template = patched_template(template, patch, container=CONTAINER, path=path)
    # Whatever a template says: the selector and the gateways find pods by these.
    own_labels = labels(name, role.value) | {REVISION: own_revision}
    return merge(template, {"metadata": {"labels": own_labels}}, path="template")


def _container(deployment: DuetDeployment, role: Role, images: Images, own_revision: str) -> Manifest:
    spec = deployment.spec
    container: Manifest = {
        "name": CONTAINER,
        "image": images.engine,
        "imagePullPolicy": images.pull_policy,
        "env": _environment(deployment, role, own_revision),
        "ports": [
            {"name": "http", "containerPort": ENGINE_PORT, "protocol": "TCP"},
            {"name": "bootstrap", "containerPort": BOOTSTRAP_PORT, "protocol": "TCP"},
        ],
        "resources": {
            "limits": {spec.pool(role).gpu.effective_resource_name: str(spec.tensor_parallel_size(role))},
        },
        "securityContext": {"allowPrivilegeEscalation": False},
        "lifecycle": {"preStop": {"exec": {"command": ["duet-engine", "drain"]}}},
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *engine_mounts(),
            *weights(spec.model).mounts,
        ],
        **_probes(),
    }
    if spec.engine.args:
        container["args"] = list(spec.engine.args)
    return container


def _probes() -> Manifest:
    """Never SGLang's own /health: it takes a second, and fails on decode workers when a prefill worker dies.

    The start may take an hour (weights over a slow network); how long is too long is `pendingDeadlineSeconds`' matter.
    """
    return {
        "startupProbe": probe(LIVE_PATH, port="http", period_seconds=1, failures=3600),
        "readinessProbe": probe(READY_PATH, port="http", period_seconds=1, failures=2),
        "livenessProbe": probe(LIVE_PATH, port="http", period_seconds=10, failures=6),
    }


def _environment(deployment: DuetDeployment, role: Role, own_revision: str) -> list[Manifest]:
    spec = deployment.spec
    values = {
        "DUET_ROLE": role.value,
        "DUET_MODEL_ID": spec.model.id,
        "DUET_SERVED_NAME": spec.model.public_name,
        "DUET_TENSOR_PARALLEL_SIZE": str(spec.tensor_parallel_size(role)),
        "DUET_TRANSFER_BACKEND": spec.engine.transfer_backend,
        "DUET_DRAIN_TIMEOUT_SECONDS": str(spec.drain.timeout_seconds),
        "DUET_REVISION": own_revision,
        **engine_variables(),
    }
    if spec.model.context_length is not None:
        values["DUET_CONTEXT_LENGTH"] = str(spec.model.context_length)
    live = {"name": live_name(deployment.metadata.name), "key": LIVE_ITL_KEY, "optional": True}
    own = [
        *pod_environment(),
        # A live field: as a plain value its change would roll every pod.
        {"name": "DUET_ITL_MILLISECONDS", "valueFrom": {"configMapKeyRef": live}},
        *({"name": name, "value": value} for name, value in values.items()),
        *weights(spec.model).environment,
    ]
    return [*own, *(_variable(variable) for variable in spec.engine.env)]


def _variable(variable: EnvironmentVariable) -> Manifest:
    if variable.value_from is not None:
        return {"name": variable.name, "valueFrom": variable.value_from}
    return {"name": variable.name, "value": variable.value or ""}
