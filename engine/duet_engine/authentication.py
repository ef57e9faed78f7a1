"""Who may call an engine, or change a gateway: service-account tokens, verified without asking anybody.

Invariant: what isn't proven is refused, and everything on an engine but probes and metrics must be proven. A verdict
never outlives its token, ten minutes, or the trust document that it rests on. Needs PyJWT, so nothing of the base
package imports it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import jwt

from duet_engine.mounted_files import MountedFile, token_file
from duet_engine.protocol import LIVE_PATH, READY_PATH, Trust, openai_error

OPEN_PATHS = frozenset({READY_PATH, LIVE_PATH, "/metrics"})
"""The kubelet and Prometheus have no token for us. None of them changes anything or tells of a request's content."""
REQUEST_PREFIX = "/v1/"
REQUEST_PATHS = frozenset(
    {
        *("/generate", "/encode", "/classify", "/tokenize", "/detokenize", "/separate_reasoning"),
        *(
            "/ready",
            "/health",
            "/health_generate",
            "/model_info",
            "/get_model_info",
            "/server_info",
            "/get_server_info",
        ),
    }
)
"""What a router without a token needs where there is no gateway: requests, and what tells of the engine. Whatever isn't
named changes the engine or its weights, or is new."""
ALGORITHMS = frozenset({"RS256", "ES256", "ES384", "ES512"})
"""What API servers sign with. Never one with a shared key: a public key would be taken for it."""
LONGEST_VERDICT_SECONDS = 600.0
MOST_VERDICTS = 1024
CLOCK_SKEW_SECONDS = 60.0
"""By how much the API server's clock may be ahead of this one."""
LOG_SECONDS = 60.0
_BEARER = "bearer "

log = logging.getLogger(__name__)


class DenialReason(StrEnum):
    """Why a call was refused: a closed list, for metrics."""

    MISSING = "missing"
    INVALID = "invalid"
    EXPIRED = "expired"
    FORBIDDEN = "forbidden"
    UNAVAILABLE = "unavailable"
    """Nobody can tell here: there is no trust document."""


_STATUSES = {DenialReason.FORBIDDEN: 403, DenialReason.UNAVAILABLE: 503}
_KINDS = {401: "Unauthorized", 403: "Forbidden", 503: "ServiceUnavailable"}


@dataclass(frozen=True, slots=True)
class Denial:
    """The answer to a call that isn't let in."""

    reason: DenialReason
    message: str

    @property
    def status(self) -> int:
        """401: prove who you are; 403: you may not; 503: nobody can be let in now."""
        return _STATUSES.get(self.reason, 401)

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": 'Bearer realm="duet"'} if self.status == 401 else {}

    def body(self) -> bytes:
        """JSON in the shape of all errors of an engine."""
        return json.dumps(openai_error(self.message, kind=_KINDS[self.status], code=self.status)).encode()


class DeniedError(Exception):
    """A token that proves nothing."""

    def __init__(self, reason: DenialReason, message: str) -> None:
        super().__init__(message)
        self.denial = Denial(reason, message)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whom a token proves, and until when."""

    caller: str
    expires_at: float


class TokenVerifier:
    """Verifies tokens against one trust document. Pure: the time comes in with each call."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self._keys = _usable_keys(trust)

    def verify(self, token: str, *, now: float) -> Verdict:
        """Whose token it is.

        Raises:
            DeniedError: its signature, issuer, audience or time says no.
        """
        try:
            key = self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self.trust.audience,
                issuer=self.trust.issuer,
                # Times are compared below, with the clock that was given.
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidTokenError as error:
            raise DeniedError(DenialReason.INVALID, f"this token can't be accepted: {error}") from error
        expires_at = _time(claims, "exp")
        if expires_at <= now:
            raise DeniedError(DenialReason.EXPIRED, f"this token expired {now - expires_at:.0f} s ago")
        if "nbf" in claims and _time(claims, "nbf") > now + CLOCK_SKEW_SECONDS:
            raise DeniedError(DenialReason.INVALID, "this token isn't valid yet: compare the clocks")
        return Verdict(claims["sub"], expires_at)

    def _key(self, name: object) -> jwt.PyJWK:
        key = self._keys.get(name) if isinstance(name, str) else None
        if key is None:
            message = f"this token is signed with key {name!r}, which is none of the cluster's {len(self._keys)}"
            raise DeniedError(DenialReason.INVALID, message)
        return key


def _usable_keys(trust: Trust) -> dict[str, jwt.PyJWK]:
    keys = {}
    for document in trust.keys:
        try:
            key = jwt.PyJWK(document)
        except jwt.PyJWTError as error:
            log.warning("key %r of the trust document can't be used: %s", document.get("kid"), error)
            continue
        if key.key_id is not None and key.algorithm_name in ALGORITHMS:
            keys[key.key_id] = key
    return keys


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DeniedError(DenialReason.INVALID, f"this token's {name} isn't a time")
    return float(value)


@dataclass(slots=True)
class Refusals:
    """How often calls were refused, and a log line now and then: the first of a kind at once, then one each minute."""

    counts: Counter[DenialReason] = field(default_factory=Counter)
    _told_at: dict[DenialReason, float] = field(default_factory=dict)
    _untold: Counter[DenialReason] = field(default_factory=Counter)

    def note(self, denial: Denial, path: str, *, now: float) -> None:
        """One more."""
        reason = denial.reason
        self.counts[reason] += 1
        if now - self._told_at.get(reason, -LOG_SECONDS) < LOG_SECONDS:
            self._untold[reason] += 1
            return
        log.warning("refused %s: %s (%d more since the last line)", path, denial.message, self._untold.pop(reason, 0))
        self._told_at[reason] = now


class Guard:
    """Stands before the endpoints of an engine or another server."""

    def __init__(
        self,
        *,
        trust_file: Path | None = None,
        shared_token_file: Path | None = None,
        local_token_file: Path | None = None,
        open_paths: Collection[str] = OPEN_PATHS,
        server: str = "engine",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.refusals = Refusals()
        self._server = server
        self._trust = None if trust_file is None else MountedFile(trust_file, Trust.read)
        own = [path for path in (shared_token_file, local_token_file) if path is not None]
        self._own_tokens = [token_file(path) for path in own]
        self._enforcing = trust_file is not None or shared_token_file is not None
        self._open_paths = open_paths
        self._now = now
        self._verifier: TokenVerifier | None = None
        self._verdicts: dict[bytes, Verdict] = {}

    @property
    def enforcing(self) -> bool:
        """Whether callers must prove anything: only where a file says what."""
        return self._enforcing

    def denial(self, path: str, authorization: str | None) -> Denial | None:
        """Why this call isn't let in; None where it is. `authorization` is the header's value."""
        if not self._enforcing or path in self._open_paths:
            return None
        try:
            self._admit(path, authorization or "")
        except DeniedError as error:
            self.refusals.note(error.denial, path, now=self._now())
            return error.denial
        return None

    def _admit(self, path: str, authorization: str) -> None:
        token = authorization[len(_BEARER) :].strip() if authorization.lower().startswith(_BEARER) else ""
        if token and self._is_own(token):
            return
        verifier = self._current()
        if verifier is not None and verifier.trust.open_requests and _is_request(path):
            return
        if not token:
            message = "a bearer token is needed: send `Authorization: Bearer TOKEN`"
            if verifier is not None:
                message += f" with a service account's token for audience {verifier.trust.audience!r}"
            raise DeniedError(DenialReason.MISSING, message)
        if verifier is None:
            raise DeniedError(DenialReason.INVALID, "this isn't the token that was agreed on")
        caller = self._verdict(verifier, token).caller
        if caller not in verifier.trust.callers:
            allowed = ", ".join(verifier.trust.callers) or "nobody"
            raise DeniedError(DenialReason.FORBIDDEN, f"{caller} may not call this {self._server}; {allowed} may")

    def _is_own(self, token: str) -> bool:
        """Whether it's a token that somebody wrote into a file for this engine."""
        return any(_equal(file, token) for file in self._own_tokens)

    def _current(self) -> TokenVerifier | None:
        """For the trust document as it is now; None where none is configured."""
        if self._trust is None:
            return None
        try:
            trust = self._trust.content()
        except (OSError, ValueError) as error:
            message = f"this {self._server} can't tell whom to trust: {error}"
            raise DeniedError(DenialReason.UNAVAILABLE, message) from error
        if self._verifier is None or self._verifier.trust is not trust:
            self._verifier = TokenVerifier(trust)
            self._verdicts.clear()
        return self._verifier

    def _verdict(self, verifier: TokenVerifier, token: str) -> Verdict:
        """From memory where the same token was verified a short while ago. Only what is proven is remembered."""
        now, digest = self._now(), hashlib.sha256(token.encode()).digest()
        known = self._verdicts.get(digest)
        if known is not None and now < known.expires_at:
            return known
        proven = verifier.verify(token, now=now)
        if len(self._verdicts) >= MOST_VERDICTS:
            self._verdicts.clear()
        kept = Verdict(proven.caller, min(proven.expires_at, now + LONGEST_VERDICT_SECONDS))
        self._verdicts[digest] = kept
        return kept


def _is_request(path: str) -> bool:
    return path in REQUEST_PATHS or path.startswith(REQUEST_PREFIX)


def _equal(file: MountedFile[str], token: str) -> bool:
    try:
        return hmac.compare_digest(file.content().encode(), token.encode())
    except (OSError, ValueError):
        return False  # It has been said in the log, and nobody can know a token that isn't there.


def ensure_local_token(path: Path) -> None:
    """A token that only this container's processes can read, for its own preStop; an earlier one stays valid.

    Raises:
        OSError: it can't be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        # Whole or not at all, and never over one that another process of this engine has given out.
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        Path(draft).unlink()
