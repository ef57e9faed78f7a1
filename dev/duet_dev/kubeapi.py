"""The Kubernetes API calls that the process kubelet and the service relay make.

Invariant: a watch never ends and never loses a disappearance: after a gap it lists again, and objects that
vanished meanwhile come as DELETED.
"""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import yaml

JsonObject = dict[str, Any]

JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA_ONLY_WATCH = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

LONGEST_WATCH_LINE_BYTES = 2**24
PAUSE_AFTER_ERROR_SECONDS = 0.5

log = logging.getLogger(__name__)


class ApiError(Exception):
    """The API server's answer was an error; `status` is its HTTP code."""

    def __init__(self, status: int, body: str) -> None:
        try:
            message = json.loads(body)["message"]
        except (ValueError, KeyError, TypeError):
            message = body[:300]
        super().__init__(f"{status}: {message}")
        self.status = status


# What a call may raise when the API server refuses, is absent or hangs up in the middle of an answer.
UNAVAILABLE = (ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError)


class WatchEvent(NamedTuple):
    kind: str  # ADDED, MODIFIED, DELETED
    object: JsonObject


def timestamp(moment: datetime | None = None) -> str:
    """A time as most fields of the API carry it, to the second."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise_timestamp() -> str:
    """The present time as leases carry it, to the microsecond."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Api:
    """A client of one API server with one bearer token."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        if "token" not in user:
            raise ValueError(f"{kubeconfig}: users[0].user.token is missing; only bearer tokens are supported")
        self.url: str = cluster["server"]
        if data := cluster.get("certificate-authority-data"):
            self.authority = base64.b64decode(data).decode()
        else:
            self.authority = (kubeconfig.parent / cluster["certificate-authority"]).read_text()
        self._token: str = user["token"]

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=self.authority), limit=0)
        self._http = aiohttp.ClientSession(
            connector=connector,
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def get(self, path: str, *, accept: str = JSON, **params: str) -> JsonObject:
        return await self._call("GET", path, headers={"Accept": accept}, params=params)

    async def get_text(self, path: str) -> str:
        return await self._text("GET", path)

    async def post(self, path: str, body: JsonObject) -> JsonObject:
        return await self._call("POST", path, headers={"Content-Type": JSON}, data=json.dumps(body))

    async def patch(self, path: str, body: JsonObject, *, kind: str = MERGE) -> JsonObject:
        return await self._call("PATCH", path, headers={"Content-Type": kind}, data=json.dumps(body))

    async def delete(self, path: str, options: JsonObject) -> JsonObject:
        return await self._call("DELETE", path, headers={"Content-Type": JSON}, data=json.dumps(options))

    async def _call(self, method: str, path: str, **arguments: Any) -> JsonObject:  # noqa: ANN401
        answer: JsonObject = json.loads(await self._text(method, path, **arguments))
        return answer

    async def _text(self, method: str, path: str, **arguments: Any) -> str:  # noqa: ANN401
        timeout = aiohttp.ClientTimeout(total=30)
        async with self._http.request(method, self.url + path, timeout=timeout, **arguments) as response:
            text = await response.text()
            if response.status >= 400:
                raise ApiError(response.status, text)
            return text

    async def watch(self, path: str, *, metadata_only: bool = False, **params: str) -> AsyncIterator[WatchEvent]:
        known: dict[str, JsonObject] = {}
        while True:
            try:
                listing = await self.get(path, accept=METADATA_ONLY if metadata_only else JSON, **params)
                fresh = {item["metadata"]["uid"]: item for item in listing["items"] or []}
                for uid in known.keys() - fresh.keys():
                    yield WatchEvent("DELETED", known[uid])
                known = fresh
                for item in fresh.values():
                    yield WatchEvent("MODIFIED", item)
                version = listing["metadata"]["resourceVersion"]
                accept = METADATA_ONLY_WATCH if metadata_only else JSON
                async for event in self._stream(path, accept, {**params, "resourceVersion": version}):
                    uid = event.object["metadata"]["uid"]
                    if event.kind == "DELETED":
                        known.pop(uid, None)
                    else:
                        known[uid] = event.object
                    yield event
            except UNAVAILABLE as error:
                log.warning("watch %s: %r", path, error)
                await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)

    async def _stream(self, path: str, accept: str, params: dict[str, str]) -> AsyncIterator[WatchEvent]:
        """The events of one watch request, until the server ends it or the version is too old."""
        async with self._http.get(
            self.url + path,
            params={**params, "watch": "1"},
            headers={"Accept": accept},
            read_bufsize=LONGEST_WATCH_LINE_BYTES,
        ) as response:
            if response.status >= 400:
                raise ApiError(response.status, await response.text())
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield WatchEvent(event["type"], event["object"])
