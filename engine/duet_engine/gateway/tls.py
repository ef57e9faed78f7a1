"""HTTPS with a certificate from a mounted Secret of type kubernetes.io/tls.

Invariant: a certificate that is replaced serves the next handshake; one that can't be read leaves the last in force.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 10.0
CERTIFICATE, KEY = "tls.crt", "tls.key"


class ServerTls:
    """One context, loaded anew in place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._seen = self._signature()
        self._load()

    async def follow(self) -> None:
        """Look now and then whether it was replaced; never ends by itself."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            self.look_again()

    def look_again(self) -> None:
        """Load what is there now if it's another one than before."""
        try:
            seen = self._signature()
            if seen != self._seen:
                self._seen = seen
                self._load()
                log.info("TLS certificate loaded again")
        except (OSError, ssl.SSLError) as error:
            log.warning("TLS certificate of %s can't be used: %s; the one before stays in force", self._folder, error)

    def _load(self) -> None:
        self.context.load_cert_chain(self._folder / CERTIFICATE, self._folder / KEY)

    def _signature(self) -> list[tuple[int, int]]:
        statuses = [(self._folder / name).stat() for name in (CERTIFICATE, KEY)]
        return [(status.st_ino, status.st_mtime_ns) for status in statuses]
