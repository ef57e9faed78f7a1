"""Who asks, and as which class: API keys from a mounted Secret, known here by their hashes only.

Invariant: with keys, nobody without one gets more than a refusal, and a header gets nobody more than the key does. A
key is compared by its digest, never stored, never logged. What the folder said last stays in force when it can't be
read any more.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from duet_engine.gateway.live_settings import DEFAULT_CLASS, LiveSettings
from duet_engine.gateway.wire.messages import Headers, Refusal

log = logging.getLogger(__name__)

CLASS_HEADER = "x-duet-class"
LOOK_AGAIN_SECONDS = 1.0
_LINE = re.compile(r"sha256:([0-9a-f]{64})(?:\s+([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?))?")
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may ask."""

    key: str
    """Name of the key's entry in the Secret; empty where no keys are asked for."""
    class_name: str


ANYBODY = Caller("", DEFAULT_CLASS)


class Callers:
    """Reads the keys, again when they change."""

    def __init__(self, folder: Path | None, live: Callable[[], LiveSettings]) -> None:
        self._folder = folder
        self._live = live
        self._seen: object = None
        self._looked_at = float("-inf")
        self._keys: dict[bytes, Caller] = {}
        if folder is not None:
            self._keys = read_keys(folder)
            self._seen = _signature(folder)

    def identify(self, headers: Headers) -> Caller:
        """Who a request's headers prove to ask.

        Raises:
            Refusal: 401 without a known key, 403 for a class that it may not choose.
        """
        if self._folder is None:
            caller = ANYBODY
        else:
            self._look_again(self._folder)
            known = self._keys.get(_digest(headers.get("authorization", "")))
            if known is None:
                message = "a known API key is needed: send `Authorization: Bearer KEY`"
                raise Refusal(401, message, (("www-authenticate", 'Bearer realm="duet"'),))
            caller = known
        wanted = headers.get(CLASS_HEADER)
        return caller if wanted is None or wanted == caller.class_name else self._lowered(caller, wanted)

    def _lowered(self, caller: Caller, wanted: str) -> Caller:
        live = self._live()
        known = {DEFAULT_CLASS, *live.classes}
        if wanted not in known:
            raise Refusal(403, f"{CLASS_HEADER}: there is no class {wanted!r}; known: {', '.join(sorted(known))}")
        if live.weight_of(wanted) >= live.weight_of(caller.class_name):
            raise Refusal(403, f"{CLASS_HEADER}: {wanted!r} hasn't less weight than this key's {caller.class_name!r}")
        return Caller(caller.key, wanted)

    def _look_again(self, folder: Path) -> None:
        now = monotonic()
        if now - self._looked_at < LOOK_AGAIN_SECONDS:
            return
        self._looked_at = now
        try:
            seen = _signature(folder)
            if seen == self._seen:
                return
            self._seen = seen
            self._keys = read_keys(folder)
            log.info("%d API keys in force", len(self._keys))
        except (OSError, ValueError) as error:
            log.warning("API keys of %s can't be used: %s; those from before stay in force", folder, error)


def read_keys(folder: Path) -> dict[bytes, Caller]:
    """Keys by digest. Each file holds lines `sha256:HEX [CLASS]`; empty ones and those that begin with # are skipped.

    Raises:
        OSError, ValueError: naming the file and line.
    """
    keys = {}
    for path in _files(folder):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            found = _LINE.fullmatch(text)
            if found is None:
                raise ValueError(f"{path.name}, line {number}: must look like `sha256:64 hex digits [class]`")
            keys[bytes.fromhex(found[1])] = Caller(path.name, found[2] or DEFAULT_CLASS)
    return keys


def hashed(key: str) -> str:
    """A key as its Secret holds it."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _digest(authorization: str) -> bytes:
    if authorization[: len(_BEARER)].lower() != _BEARER:
        return b""
    return hashlib.sha256(authorization[len(_BEARER) :].strip().encode("latin-1", "replace")).digest()


def _files(folder: Path) -> list[Path]:
    """A kubelet's own links begin with two dots."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())


def _signature(folder: Path) -> object:
    return [(path.name, (status := path.stat()).st_ino, status.st_mtime_ns, status.st_size) for path in _files(folder)]
