"""List and watch of one kind of Kubernetes objects, with nothing but an HTTP client.

Invariant: the snapshot in memory is a list plus every event after it. While the API server is away it stays as it is:
a gateway goes on with the workers it knows.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import yaml

from duet_engine.gateway.lines import lines
from duet_engine.gateway.settings import SettingsError

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
WATCH_SECONDS = 290
SHORTEST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0


class Snapshots(Protocol):
    """Something that yields all objects, by uid, again after each change."""

    def snapshots(self) -> AsyncIterator[Mapping[str, dict[str, Any]]]: ...


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """Where the API server is and how this process proves who it is."""

    server: str
    tls: ssl.SSLContext | bool
    token: str | None = None
    token_path: Path | None = None

    def headers(self) -> dict[str, str]:
        """The token is read again each time: mounted ones rotate."""
        token = self.token_path.read_text().strip() if self.token_path else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


def cluster_access() -> ClusterAccess:
    """In-cluster credentials, else the current context of KUBECONFIG.

    Raises:
        SettingsError: neither is there, or the file can't be used.
    """
    kubeconfig = os.environ.get("KUBECONFIG")
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host and (SERVICE_ACCOUNT / "token").exists():
        tls = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
        address = f"[{host}]" if ":" in host else host
        return ClusterAccess(f"https://{address}:{port}", tls, token_path=SERVICE_ACCOUNT / "token")
    if kubeconfig:
        return _from_kubeconfig(Path(kubeconfig))
    raise SettingsError(
        f"no Kubernetes credentials: neither {SERVICE_ACCOUNT}/token nor KUBECONFIG; use --config without Kubernetes"
    )


def _from_kubeconfig(path: Path) -> ClusterAccess:
    try:
        config = yaml.safe_load(path.read_text())
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"]
        tls = _tls(cluster, user)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ssl.SSLError) as error:
        raise SettingsError(f"{path}: not a usable kubeconfig: {error!r}") from error
    token_file = user.get("tokenFile")
    return ClusterAccess(
        cluster["server"], tls, token=user.get("token"), token_path=Path(token_file) if token_file else None
    )


def _named(config: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    for item in config[kind]:
        if item["name"] == name:
            found: Mapping[str, Any] = item
            return found
    raise KeyError(f"{kind}: no entry {name!r}")


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext | bool:
    if not str(cluster["server"]).startswith("https://"):
        return True
    data = cluster.get("certificate-authority-data")
    context = ssl.create_default_context(
        cafile=cluster.get("certificate-authority"), cadata=base64.b64decode(data).decode() if data else None
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "client-certificate" in user:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    elif "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as pair:
            for part in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[part]) + b"\n")
            pair.flush()
            context.load_cert_chain(pair.name)
    return context


class ObjectWatch:
    """All objects under one API path, narrowed by selectors."""

    def __init__(
        self, session: aiohttp.ClientSession, access: ClusterAccess, path: str, *, selectors: Mapping[str, str]
    ) -> None:
        self._session = session
        self._access = access
        self._url = access.server + path
        self._selectors = dict(selectors)
        self._objects: dict[str, dict[str, Any]] = {}

    async def snapshots(self) -> AsyncIterator[Mapping[str, dict[str, Any]]]:
        """The whole set after the first list and after every change; never ends by itself."""
        pause_seconds = SHORTEST_PAUSE_SECONDS
        while True:
            try:
                version = await self._list()
                yield self._objects
                pause_seconds = SHORTEST_PAUSE_SECONDS
                async for _ in self._follow(version):
                    yield self._objects
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                reason = str(error) or type(error).__name__
                log.warning("watch of %s: %s; again in %.1f s", self._url, reason, pause_seconds)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    async def _list(self) -> str:
        timeout = aiohttp.ClientTimeout(total=30, sock_connect=5)
        async with self._request(dict(self._selectors), timeout) as response:
            document = await response.json()
        self._objects = {item["metadata"]["uid"]: item for item in document["items"]}
        version: str = document["metadata"]["resourceVersion"]
        return version

    async def _follow(self, version: str) -> AsyncIterator[None]:
        """Apply events until the API server wants a new list; a watch that merely ends goes on where it was."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=WATCH_SECONDS + 30)
        while True:
            query = {
                **self._selectors,
                "watch": "1",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(WATCH_SECONDS),
            }
            async with self._request(query, timeout) as response:
                async for line in lines(response.content):
                    event = json.loads(line)
                    changed = event["object"]
                    if event["type"] == "ERROR":
                        raise ValueError(f"{changed.get('code')} {changed.get('message')}")
                    version = changed["metadata"]["resourceVersion"]
                    if self._apply(event["type"], changed):
                        yield
            await asyncio.sleep(SHORTEST_PAUSE_SECONDS)

    def _request(
        self, query: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.client._RequestContextManager:
        return self._session.get(
            self._url,
            params=query,
            headers=self._access.headers(),
            ssl=self._access.tls,
            timeout=timeout,
            raise_for_status=True,
        )

    def _apply(self, kind: str, changed: dict[str, Any]) -> bool:
        if kind == "BOOKMARK":
            return False
        uid = changed["metadata"]["uid"]
        if kind == "DELETED":
            self._objects.pop(uid, None)
        else:
            self._objects[uid] = changed
        return True
