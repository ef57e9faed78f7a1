"""What `duet-engine` starts: the command line and the environment of SGLang, after all that can be checked before.

Invariant: what is missing is said before SGLang loads for a minute: its version, the plugin, a GPU.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from duet_engine.plugin.command_line import CPU_VARIABLE, ArgumentError, command_line
from duet_engine.plugin.registration import SUPPORTED_VERSIONS

LOG_FORMATS = ("json", "text")
ADDRESS_VARIABLES = ("SGLANG_HOST_IP", "HOST_IP")
"""By which SGLang is told under which address other engines reach it for KV."""
PLUGIN_GROUP = "sglang.srt.plugins"
PROBES = {"SGLANG_FAILED_SESSION_PROBE_INTERVAL_S": "0.5", "SGLANG_FAILED_SESSION_PROBE_MAX_INTERVAL_S": "20"}
"""After one broken transfer a prefill worker sends a decode worker nothing until a probe has reached it. SGLang's first
probe is after 30 s, and all that time requests fail for this pair."""


def prepare(environment: Mapping[str, str], given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command and its environment.

    Raises:
        ValueError: with what to change.
    """
    arguments = command_line(environment, given)
    _check_packages()
    if environment.get(CPU_VARIABLE) != "1":
        _check_gpu()
    own = {"DUET_ROLE": environment.get("DUET_ROLE") or "unified"}
    if (address := environment.get("POD_IP")) and not any(environment.get(name) for name in ADDRESS_VARIABLES):
        # Otherwise SGLang takes the first network device's, which need not be the one that other pods see.
        own[ADDRESS_VARIABLES[0]] = address
    if not PROBES.keys() & environment.keys():
        own |= PROBES
    log_format = environment.get("DUET_LOG_FORMAT") or "json"
    if log_format not in LOG_FORMATS:
        raise ArgumentError(f"DUET_LOG_FORMAT: must be one of {', '.join(LOG_FORMATS)}, got {log_format!r}")
    if log_format == "json" and "SGLANG_LOGGING_CONFIG_PATH" not in environment:
        own["SGLANG_LOGGING_CONFIG_PATH"] = str(_logging_file())
    return [sys.executable, "-m", "sglang.launch_server", *arguments], {**environment, **own}


def _check_packages() -> None:
    supported = ", ".join(SUPPORTED_VERSIONS)
    try:
        found = version("sglang")
    except PackageNotFoundError:
        raise ArgumentError(f"SGLang isn't installed here; install sglang=={SUPPORTED_VERSIONS[-1]}") from None
    if found not in SUPPORTED_VERSIONS:
        raise ArgumentError(f"SGLang {found} isn't supported by this version of Duet; supported: {supported}")
    if not any(entry.value.startswith("duet_engine.plugin:") for entry in entry_points(group=PLUGIN_GROUP)):
        raise ArgumentError("Duet's plugin isn't registered: install this project as a package, not by its path alone")


def _check_gpu() -> None:
    """That the driver is there and shows a device."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        found = False
    if not found:
        raise ArgumentError(
            "no NVIDIA GPU is visible here: ask for one (spec.pools.*.gpu), "
            f"or set {CPU_VARIABLE}=1 to run a small model on the CPU"
        )


def _logging_file() -> Path:
    """A logging configuration that SGLang reads in each of its processes."""
    stream = {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}
    content = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "duet_engine.plugin.json_logs.JsonLines"}},
        "handlers": {"stdout": stream},
        "root": {"level": "INFO", "handlers": ["stdout"]},
        "loggers": {name: {"level": "WARNING"} for name in ("httpx", "httpcore", "urllib3")},
    }
    path = Path(tempfile.mkdtemp(prefix="duet-")) / "logging.json"
    path.write_text(json.dumps(content))
    return path
