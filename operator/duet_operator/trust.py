"""Trust between the operator, the cluster and pods: whose tokens these may believe, and tokens to show them.

Invariant: keys that were read once stay in force until others are; a failure to read them is said each time. A token is
only good for the engines, or for the gateways, of one object, so that no tenant's engine can use it elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from duet_engine.mounted_files import bearer, no_credentials, presented
from duet_engine.protocol import gateway_audience, token_audience
from duet_operator.cluster import ClusterError
from duet_operator.resources.labels import GATEWAY_ROLE
from duet_operator.resources.trust import TOKEN_SECONDS, TokenIssuer
from duet_operator.settings import PREFIX, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from duet_operator.metrics import Metrics
    from duet_operator.pods import Pod

DISCOVERY_PATH = "/.well-known/openid-configuration"
KEYS_PATH = "/openid/v1/jwks"
REFRESH_SECONDS = 300.0
RETRY_SECONDS = 15.0
LIFETIME_USED = 0.8

logger = logging.getLogger(__name__)


class TokenSource(Protocol):
    """What is needed of the API server."""

    async def document(self, path: str) -> dict[str, Any]: ...

    async def request_token(self, namespace: str, account: str, *, audience: str, seconds: int) -> dict[str, Any]: ...


class IssuerWatch:
    """Who signs the cluster's tokens, read again every few minutes."""

    def __init__(self, source: TokenSource, *, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics
        self.issuer: TokenIssuer | None = None
        """None until it could be read."""

    async def run(self) -> None:
        """For ever; `refresh` comes first."""
        read = self.issuer is not None
        while True:
            await asyncio.sleep(REFRESH_SECONDS if read else RETRY_SECONDS)
            read = await self.refresh()

    async def refresh(self) -> bool:
        """Read it now; False where that failed."""
        try:
            discovered, keys = await self._source.document(DISCOVERY_PATH), await self._source.document(KEYS_PATH)
            found = TokenIssuer(issuer=str(discovered["issuer"]), keys=tuple(keys["keys"]))
            if not found.keys:
                raise ValueError("the list of keys is empty")
        except (ClusterError, KeyError, TypeError, ValueError) as error:
            kept = "engines can't be told whom to believe" if self.issuer is None else "the last ones stay in force"
            logger.warning("the keys of the cluster's tokens can't be read; %s: %r", kept, error)
            self._metrics.keys_read(failed=True)
            return False
        if found != self.issuer:
            logger.info("tokens are signed by %s with %d keys", found.issuer, len(found.keys))
        self.issuer = found
        self._metrics.keys_read(failed=False)
        return True


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    renewed_at_seconds: float
    """From then on another one is asked for."""
    expires_at_seconds: float


class PodTokens:
    """The operator's tokens, one for each object's engines and one for its gateways, asked for when they are needed."""

    def __init__(self, source: TokenSource, *, namespace: str, account: str, now_seconds: Callable[[], float]) -> None:
        self._source = source
        self._namespace = namespace
        self._account = account
        self._now_seconds = now_seconds
        self._tokens: dict[str, _Token] = {}

    async def credentials(self, pod: Pod) -> dict[str, str]:
        """Headers for the server in this pod.

        Raises:
            ClusterError: there is no token, and none could be had.
        """
        of_object = gateway_audience if pod.role == GATEWAY_ROLE else token_audience
        audience, now = of_object(pod.namespace, pod.owner), self._now_seconds()
        known = self._tokens.get(audience)
        if known is None or now >= known.renewed_at_seconds:
            known = await self._request(audience, now)
        return bearer(known.value)

    async def _request(self, audience: str, now: float) -> _Token:
        answer = await self._source.request_token(
            self._namespace, self._account, audience=audience, seconds=TOKEN_SECONDS
        )
        expires = datetime.fromisoformat(answer["expirationTimestamp"]).timestamp()
        token = _Token(answer["token"], now + (expires - now) * LIFETIME_USED, expires)
        self._tokens = {name: each for name, each in self._tokens.items() if each.expires_at_seconds > now}
        self._tokens[audience] = token
        return token


class SharedToken:
    """A token in a file, the same for all pods; none where no file is named.

    Raises:
        SettingsError: there is no token in the file.
    """

    def __init__(self, path: str) -> None:
        try:
            self._headers = presented(Path(path)) if path else no_credentials
        except (OSError, ValueError) as error:
            raise SettingsError(f"{PREFIX}ENGINE_TOKEN_PATH names {path!r}: {error}") from error

    async def credentials(self, _pod: Pod) -> dict[str, str]:
        """Headers for any pod."""
        return self._headers()
