"""What a gateway is told when it starts: limits and, without Kubernetes, its workers.

Invariant: everything that may change while it runs is in `live_settings`, nothing of it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from duet_engine.gateway.processes import ALONE, Membership
from duet_engine.protocol import BOOTSTRAP_PORT, GATEWAY_ADMIN_PORT, GATEWAY_PORT, Role


class SettingsError(ValueError):
    """A configuration that can't be used; the message names the file, the field and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what clients and engines may cost this process."""

    body_bytes: int = 8 * 2**20
    """A prompt of a million token ids. While a body is parsed nothing else is relayed: about 0.1 s per MiB of ids."""
    body_timeout_seconds: float = 30.0
    header_bytes: int = 32 * 2**10
    header_fields: int = 100
    target_bytes: int = 8 * 2**10
    header_timeout_seconds: float = 10.0
    keep_alive_seconds: float = 75.0
    """How long a connection may wait for its next request."""
    connections: int = 20_000
    pipelined_requests: int = 16
    """Without bodies, sent on one connection before the answer to the first."""
    total_timeout_seconds: float = 3600.0
    """From a request's arrival to the end of its answer."""
    held_requests: int = 2000
    held_bytes: int = 256 * 2**20
    hold_timeout_seconds: float = 60.0
    """How long a request waits while no worker could take it."""
    queue_timeout_seconds: float = 300.0
    """How long it waits while workers are there but busy."""
    connect_timeout_seconds: float = 2.0
    idle_timeout_seconds: float = 300.0
    """Longest silence of an engine that works on a request."""
    unstreamed_seconds_per_token: float = 0.1
    """Added to it for an answer that comes whole, after its last token."""
    client_stall_seconds: float = 60.0
    """How long a client may leave its answer unread before it is taken for gone."""
    failed_attempts: int = 4
    retry_seconds: float = 60.0
    """A request that has been here longer gets no further attempt after a failed one."""
    window_seconds: float = 0.15
    """Predicted work that a worker may have ahead when it gets one more prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The process itself."""

    host: str = "127.0.0.1"
    port: int = GATEWAY_PORT
    admin_host: str = "127.0.0.1"
    admin_port: int = GATEWAY_ADMIN_PORT
    name: str = "gateway"
    propagation_seconds: float = 5.0
    """Between SIGTERM and the end of accepting: endpoints must have left the load balancers."""
    grace_seconds: float = 600.0
    engine_token_file: Path | None = None
    """The token that engines ask for; None sends none."""
    trust_file: Path | None = None
    """Who may change anything through the admin port; None asks nobody."""
    api_keys_folder: Path | None = None
    """Hashed API keys, one file for each; None asks nobody for a key."""
    tls_folder: Path | None = None
    """Certificate and key of the public port; None serves plain HTTP."""
    limits: Limits = Limits()
    """Of this process: its share where there are several."""
    membership: Membership = ALONE


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class StaticWorker(_Part):
    """One engine of the file."""

    url: str
    role: Role
    name: str | None = None
    revision: str = ""
    bootstrap_port: int = Field(default=BOOTSTRAP_PORT, gt=0, lt=65_536)
    gpu: str = ""
    """Whose step times to predict with where the engine doesn't say: a plain SGLang server."""

    @field_validator("url")
    @classmethod
    def _plain_http_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"must look like http://host:port, got {url!r}")
        return url.rstrip("/")


class StaticConfig(_Part):
    """The file: workers, and the parts of a DuetDeployment's spec that a gateway follows, as they are written there."""

    workers: tuple[StaticWorker, ...]
    model: dict[str, Any] = Field(default_factory=dict)
    routing: dict[str, Any] = Field(default_factory=dict)
    gateway: dict[str, Any] = Field(default_factory=dict)
    slo: dict[str, Any] = Field(default_factory=dict)
    deflection: dict[str, Any] = Field(default_factory=dict)
    multiplexing: dict[str, Any] = Field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """The part that a DuetDeployment would hold in its spec."""
        return {
            "model": self.model,
            "slo": self.slo,
            "deflection": self.deflection,
            "multiplexing": self.multiplexing,
            "routing": self.routing,
            "gateway": self.gateway,
        }


def read_static_config(path: Path) -> StaticConfig:
    """YAML or JSON.

    Raises:
        SettingsError: naming the file and the first bad field.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    try:
        return StaticConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise SettingsError(f"{path}: {where}: {first['msg']}") from error
