"""The cluster port over the Kubernetes API.

Invariant: this is the only module that imports a Kubernetes client. Every write passes `gate` right before it's sent,
is given up when the gate's time is over, and is counted.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import asyncio
import json
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from kubernetes.aio import client, config

from duet_operator.cluster import (
    CHUNK_SIZE,
    FIELD_MANAGER,
    IN_CLUSTER_VARIABLE,
    SERVICE_ACCOUNT,
    ClusterError,
    ConflictError,
    Kind,
    Listing,
    NotFoundError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Manifest = dict[str, Any]

CONCURRENT_REQUESTS = 16
"""Enough for a thousand requests a second to a quick API server; a starved one answers none sooner for more of them."""
CONNECTIONS = CONCURRENT_REQUESTS + 8
"""Some more than the requests that passes may send at once, so that the Lease is never renewed too late for them."""
MAXIMUM_RETRY_AFTER_SECONDS = 5.0


class KubernetesCluster:
    """The port over a real API server, by the official asynchronous client."""

    def __init__(
        self,
        api: client.ApiClient,
        *,
        timeout_seconds: float = 10.0,
        gate: Callable[[], float] = lambda: float("inf"),
        on_write: Callable[[str, str], None] = lambda _verb, _kind: None,
    ) -> None:
        self._api = api
        self._room = asyncio.Semaphore(CONCURRENT_REQUESTS)
        self._timeout_seconds = timeout_seconds
        self._gate = gate
        self._on_write = on_write

    def gated(self, gate: Callable[[], float]) -> KubernetesCluster:
        """The same cluster by the same connections, where `gate` says how long each write may take, or raises."""
        return KubernetesCluster(self._api, timeout_seconds=self._timeout_seconds, gate=gate, on_write=self._on_write)

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        try:
            return await self._request("GET", kind.path(namespace, name))
        except NotFoundError:
            return None

    async def list(self, kind: Kind, *, namespace: str | None = None, label_selector: str = "") -> Listing:
        pages = [page async for page in self.pages(kind, namespace=namespace, label_selector=label_selector)]
        return Listing(tuple(item for page in pages for item in page.items), pages[-1].resource_version)

    async def pages(
        self, kind: Kind, *, namespace: str | None = None, label_selector: str = ""
    ) -> AsyncIterator[Listing]:
        token = ""
        while True:
            query = {"limit": str(CHUNK_SIZE), "labelSelector": label_selector, "continue": token}
            page = await self._request("GET", kind.path(namespace), query=query)
            # Items of a list leave out what the list says once.
            said = {"apiVersion": kind.api_version, "kind": kind.name}
            items = tuple({**said, **item} for item in page.get("items") or ())
            yield Listing(items, page["metadata"]["resourceVersion"])
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def create(self, manifest: Manifest) -> Manifest:
        kind = kind_of(manifest)
        path = kind.path(manifest["metadata"]["namespace"])
        return await self._write("create", kind, "POST", path, manifest, fieldManager=FIELD_MANAGER)

    async def replace(self, manifest: Manifest) -> Manifest:
        kind = kind_of(manifest)
        path = kind.path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        return await self._write("update", kind, "PUT", path, manifest, fieldManager=FIELD_MANAGER)

    async def apply(self, manifest: Manifest) -> Manifest:
        kind = kind_of(manifest)
        path = kind.path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        return await self._write(
            "apply",
            kind,
            "PATCH",
            path,
            manifest,
            content_type="application/apply-patch+yaml",
            fieldManager=FIELD_MANAGER,
            force="true",
        )

    async def patch(self, kind: Kind, namespace: str, name: str, changes: Manifest) -> Manifest:
        path = kind.path(namespace, name)
        return await self._write("patch", kind, "PATCH", path, changes, fieldManager=FIELD_MANAGER)

    async def patch_scale(
        self, kind: Kind, namespace: str, name: str, *, expected: int | None, replicas: int, version: str | None = None
    ) -> str:
        path = kind.path(namespace, name, "scale")
        changes: Manifest = {"spec": {"replicas": replicas}}
        if version is not None:
            changes["metadata"] = {"resourceVersion": version}
        elif expected is not None:
            scale = await self._request("GET", path)
            present = scale["spec"].get("replicas", 0)
            if present != expected:
                message = f"it has {present} replicas where {expected} were expected"
                raise ConflictError(
                    f"scale {kind.name} {namespace}/{name}", status=409, reason="Conflict", message=message
                )
            changes["metadata"] = {"resourceVersion": scale["metadata"]["resourceVersion"]}
        scaled = await self._write("scale", kind, "PATCH", path, changes, fieldManager=FIELD_MANAGER)
        return str(scaled["metadata"]["resourceVersion"])

    async def patch_status(self, kind: Kind, namespace: str, name: str, changes: Manifest) -> Manifest:
        path = kind.path(namespace, name, "status")
        return await self._write("patch_status", kind, "PATCH", path, {"status": changes}, fieldManager=FIELD_MANAGER)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        options: Manifest = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self._write("delete", kind, "DELETE", kind.path(namespace, name), options)
        except NotFoundError:
            return

    async def document(self, path: str) -> Manifest:
        """What the API server serves at a path that is no object."""
        return await self._request("GET", path)

    async def request_token(self, namespace: str, account: str, *, audience: str, seconds: int) -> Manifest:
        """A token of a service account that only `audience` accepts: `token` and `expirationTimestamp`."""
        spec = {"audiences": [audience], "expirationSeconds": seconds}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        # Nothing is stored, so it's no write that a Lease must cover.
        answer = await self._request("POST", SERVICE_ACCOUNT.path(namespace, account, "token"), body=body)
        status: Manifest = answer["status"]
        return status

    async def _write(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        body: Manifest,
        *,
        content_type: str = "application/merge-patch+json",
        **query: str,
    ) -> Manifest:
        self._gate()
        self._on_write(verb, kind.name)
        return await self._request(
            method, path, body=body, query=query, content_type=content_type if method == "PATCH" else "application/json"
        )

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Manifest | None = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        """One request, sent once more when the server is too busy and says for how long."""
        for last_try in (False, True):
            async with self._room:
                # A process that was paused, or a connection that was long in coming, must not send what it may no more.
                seconds = min(self._timeout_seconds, float("inf") if method == "GET" else self._gate())
                try:
                    async with asyncio.timeout(seconds):
                        response = await self._send(method, path, body=body, query=query, content_type=content_type)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    reason = "Timeout" if isinstance(error, TimeoutError) else "Unreachable"
                    raise ClusterError(f"{method} {path}", status=0, reason=reason, message=str(error)) from error
            if response.status != HTTPStatus.TOO_MANY_REQUESTS or last_try:
                break
            await asyncio.sleep(_retry_after_seconds(response.headers.get("Retry-After")))
        return _content(f"{method} {path}", response.status, await response.read())

    async def _send(
        self, method: str, path: str, *, body: Manifest | None, query: dict[str, str] | None, content_type: str
    ) -> client.rest.RESTResponse:
        """One try; the whole answer is read."""
        parameters = await self._api.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            # Keys of tokens come as application/jwk-set+json, and only to those who take that too.
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        _, url, headers, _, _ = parameters
        response: client.rest.RESTResponse = await self._api.rest_client.request(
            method, url, headers=headers, body=body, _request_timeout=self._timeout_seconds
        )
        await response.read()
        return response


def _retry_after_seconds(header: str | None) -> float:
    try:
        return min(max(float(header or 1.0), 0.0), MAXIMUM_RETRY_AFTER_SECONDS)
    except ValueError:
        return 1.0


def _content(action: str, status: int, data: bytes) -> Manifest:
    """The document in a response, or the error that it says."""
    try:
        content = json.loads(data) if data else {}
    except ValueError:
        content = {}
    if status < HTTPStatus.BAD_REQUEST:
        return dict(content)
    reason = content.get("reason") or HTTPStatus(status).phrase
    message = content.get("message") or data[:300].decode(errors="replace")
    error = {HTTPStatus.NOT_FOUND: NotFoundError, HTTPStatus.CONFLICT: ConflictError}.get(
        HTTPStatus(status), ClusterError
    )
    raise error(action, status=status, reason=reason, message=message)


async def connect(
    *,
    kubeconfig: str | None = None,
    timeout_seconds: float = 10.0,
    on_write: Callable[[str, str], None] = lambda _verb, _kind: None,
) -> KubernetesCluster:
    """The cluster of a kubeconfig file if one is named, else the one that this pod runs in, else the user's own.

    Raises:
        ClusterError: where none of them can be read.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is None and IN_CLUSTER_VARIABLE in os.environ:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
    except (config.ConfigException, OSError) as error:
        raise ClusterError("connect", status=0, reason="NoConfiguration", message=str(error)) from error
    configuration.connection_pool_maxsize = CONNECTIONS
    api = client.ApiClient(configuration=configuration)
    return KubernetesCluster(api, timeout_seconds=timeout_seconds, on_write=on_write)
