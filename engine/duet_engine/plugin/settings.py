"""What an engine pod is told by its environment (docs/engine.md lists the variables).

Invariant: a bad value is an error that names the variable; every process of an engine reads the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from duet_engine.protocol import Role

DEFAULT_ITL_MILLISECONDS = 50
DEFAULT_DRAIN_TIMEOUT_SECONDS = 600.0


class SettingError(ValueError):
    """A variable with a value that can't be used; the message names it and says what would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One engine's settings."""

    role: Role
    worker: str
    revision: str
    model_id: str
    gpu: str
    gpu_partition: str | None
    itl_milliseconds: int
    drain_timeout_seconds: float
    calibration: Path | None
    step_log: Path | None
    trust_file: Path | None
    shared_token_file: Path | None
    local_token_file: Path | None

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> EngineSettings:
        """From the environment.

        Raises:
            SettingError: naming the variable.
        """
        return cls(
            role=_role(environment),
            worker=environment.get("POD_NAME", ""),
            revision=environment.get("DUET_REVISION", ""),
            model_id=environment.get("DUET_MODEL_ID", ""),
            gpu=environment.get("DUET_GPU", ""),
            gpu_partition=environment.get("DUET_GPU_PARTITION"),
            itl_milliseconds=int(_number(environment, "DUET_ITL_MILLISECONDS", DEFAULT_ITL_MILLISECONDS)),
            drain_timeout_seconds=_number(environment, "DUET_DRAIN_TIMEOUT_SECONDS", DEFAULT_DRAIN_TIMEOUT_SECONDS),
            calibration=_path(environment, "DUET_CALIBRATION"),
            step_log=_path(environment, "DUET_STEP_LOG"),
            trust_file=_path(environment, "DUET_TRUST_FILE"),
            shared_token_file=_path(environment, "DUET_SHARED_TOKEN_FILE"),
            local_token_file=_path(environment, "DUET_LOCAL_TOKEN_FILE"),
        )


def _role(environment: Mapping[str, str]) -> Role:
    text = environment.get("DUET_ROLE", Role.UNIFIED.value)
    try:
        return Role(text)
    except ValueError:
        raise SettingError(f"DUET_ROLE: must be one of {', '.join(Role)}, got {text!r}") from None


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else float(default)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise SettingError(f"{name}: must be a positive number, got {text!r}")
    return value


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name, "")
    return Path(text) if text else None
