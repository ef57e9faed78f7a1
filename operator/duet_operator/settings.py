"""What the person who installs the operator decides: read once from environment variables.

Invariant: every setting stands here with its variable, default and meaning; a bad value stops the start with the
variable's name and the fix. Nothing that a DuetDeployment may say belongs here.
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "DUET_OPERATOR_"
_NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_SECRET = re.compile(r"^(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")
"""Variables that Kubernetes itself sets for a Service of the operator's name."""

LogFormat = Literal["text", "json"]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]


class SettingsError(ValueError):
    """An environment variable that can't be used; the message names it and the fix."""


@cache
@cache
def package_version() -> str:
    """Version of the running package."""
    try:
        return version("duet-serve")
    except PackageNotFoundError:
        return "0.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The operator's own settings. The variable of `engine_image` is DUET_OPERATOR_ENGINE_IMAGE, and so on."""

    engine_image: str = ""
    """Engine image of objects that name none; empty leaves the builders' default."""
    gateway_image: str = ""
    """Image of all gateways; empty leaves the builders' default."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets to pull the images of engines and gateways with, comma-separated; each namespace that holds a
    DuetDeployment needs Secrets of these names. None leaves it to the nodes and to the pods' service accounts."""
    image_pull_policy: PullPolicy = "IfNotPresent"
    """When nodes pull them: Always, IfNotPresent or Never."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve, comma-separated; empty serves the whole cluster. Nothing is read or written outside."""
    namespace: str = "duet-system"
    """The operator's own namespace, which holds its Lease."""
    identity: str = ""
    """Holder name on the Lease, to which a random suffix is added; empty takes the host name."""

    lease_enabled: bool = True
    """Write only while holding a Lease, so that two operators never act at once."""
    lease_name: str = "duet-operator"
    """Name of that Lease."""
    lease_seconds: float = 15.0
    """How long a Lease holds without renewal; another operator takes over after it."""

    drain_lease_floor_seconds: float = 30.0
    """Shortest lease of a drain, or six intervals; a worker whose operator died serves again after it."""
    drain_settle_seconds: float = 2.0
    """How long a drained worker must have held no request before it leaves."""
    service_account: str = ""
    """The account that the operator runs as, by whose tokens engines know it; empty where it runs outside a cluster."""
    engine_token_path: str = ""
    """File with a token that engines outside Kubernetes share with the operator; it takes the account's place."""
    scrape_timeout_seconds: float = 2.0
    """How long a gateway or an engine may take to answer."""
    request_timeout_seconds: float = 10.0
    """How long the API server may take to answer."""
    demand_window_seconds: float = 10.0
    """Window over which demand is measured; three intervals if that is longer."""
    attainment_window_seconds: float = 60.0
    """Window over which the status tells attainment and latencies, and over which answers are averaged."""
    stale_seconds: float = 15.0
    """A gateway whose document hasn't changed for so long, or three intervals if that is longer, counts as silent."""

    debounce_seconds: float = 0.2
    """How long events of one object are gathered before its next pass."""
    concurrent_passes: int = 16
    """Objects whose passes begin at once; one that has to wait for somebody lets the next one begin."""
    relist_seconds: float = 600.0
    """How often everything watched is listed again, to forget what a watch missed."""
    status_refresh_seconds: float = 60.0
    """How often measured numbers in the status are refreshed when they change by less than 10 %."""
    status_writes_per_second: float = 15.0
    """How many statuses are written in a second over all objects for the sake of measured numbers alone."""
    history_flush_seconds: float = 300.0
    """How often the planner's memory is saved; the objects' saves are spread over this time."""

    http_host: str = "127.0.0.1"
    """Address of `/healthz` and `/metrics`; in a pod the pod's own."""
    http_port: int = 8080
    """Port of `/healthz` and `/metrics`; 0 takes any free one."""
    log_format: LogFormat = "text"
    """Form of log lines: text or json."""
    log_level: str = "INFO"
    """Least level of log lines: DEBUG, INFO, WARNING or ERROR."""

    def drain_lease_seconds(self, interval_seconds: float) -> float:
        """Lease of a drain of an object with this interval."""
        return max(self.drain_lease_floor_seconds, 6.0 * interval_seconds)

    def demand_window_for(self, interval_seconds: float) -> float:
        """Window of the demand of an object with this interval."""
        return max(self.demand_window_seconds, 3.0 * interval_seconds)

    def document_stale_seconds(self, interval_seconds: float) -> float:
        """Age past which a gateway's unchanged document counts as silence."""
        return max(self.stale_seconds, 3.0 * interval_seconds)


def from_environment(environment: Mapping[str, str]) -> Settings:
    """The settings that `environment` asks for.

    Raises:
        SettingsError: naming the variable and what it must be.
    """
    known = {PREFIX + field.name.upper(): field for field in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, field in known.items():
        text = environment.get(variable, "").strip()
        if text:
            values[field.name] = (
                _CHOICES[field.name](variable, text) if field.name in _CHOICES else _read(variable, text, field)
            )
    for variable in sorted(environment):
        if variable.startswith(PREFIX) and variable not in known and not _SERVICE_LINK.search(variable):
            raise SettingsError(f"{variable} isn't a setting of the operator; known are {', '.join(sorted(known))}")
    return Settings(**values)


def _read(variable: str, text: str, field: Field[Any]) -> object:
    """A value of the default's type."""
    if isinstance(field.default, bool):
        return _choice(variable, text.lower(), "true", "false") == "true"
    if isinstance(field.default, int | float):
        return _number(
            variable, text, whole=isinstance(field.default, int), least_excluded=field.name not in _MAY_BE_ZERO
        )
    return text


def _number(variable: str, text: str, *, whole: bool, least_excluded: bool) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf") or (least_excluded and value == 0):
        wanted = f"{'whole ' if whole else ''}number {'above 0' if least_excluded else 'of 0 or more'}"
        raise SettingsError(f"{variable} is {text!r}: it must be a {wanted}")
    return value


def _choice(variable: str, text: str, *allowed: str) -> str:
    if text not in allowed:
        raise SettingsError(f"{variable} is {text!r}: it must be {' or '.join(allowed)}")
    return text


def _names(variable: str, text: str, *, of: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if not pattern.match(name):
            raise SettingsError(f"{variable} names {name!r}: that can't be a {of}; separate names by commas")
    return names


_MAY_BE_ZERO = frozenset({"debounce_seconds", "drain_settle_seconds", "http_port"})
_CHOICES: Mapping[str, Callable[[str, str], object]] = {
    "namespaces": lambda variable, text: _names(variable, text, of="namespace", pattern=_NAMESPACE),
    "image_pull_secrets": lambda variable, text: _names(variable, text, of="Secret", pattern=_SECRET),
    "image_pull_policy": lambda variable, text: _choice(variable, text, "Always", "IfNotPresent", "Never"),
    "log_format": lambda variable, text: _choice(variable, text.lower(), "text", "json"),
    "log_level": lambda variable, text: _choice(variable, text.upper(), "DEBUG", "INFO", "WARNING", "ERROR"),
}
