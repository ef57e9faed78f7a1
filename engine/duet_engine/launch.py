"""`duet-engine`: starts SGLang with Duet's plugin, and commands of an engine pod's container.

Invariant: SGLang takes this process's place, so that signals reach it. `duet-engine drain` ends with 0 only when the
worker holds nothing any more, or is gone; it needs nothing but the standard library, because a pod's grace period runs
while it starts. Calls present the token that the engine has written for its own container (DUET_LOCAL_TOKEN_FILE),
where it asks for any.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

DRAIN_PATH = "/duet/drain"
COMMANDS = ("show", "drain")
DOCUMENTS = ("state", "info", "drain", "knobs")
LOCAL_TOKEN_VARIABLE = "DUET_LOCAL_TOKEN_FILE"
DEFAULT_PORT = 30_000
DEFAULT_TIMEOUT_SECONDS = 600.0
LEASE_SECONDS = 30.0
"""Renewed all the time; runs out soon after this command is killed."""
POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.0
"""How long the worker must have been empty: requests may still be on their way from a gateway that hasn't heard."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or given[0] not in (*COMMANDS, "-h", "--help"):
        start(given)
    options = _parser().parse_args(given)
    if options.command == "show":
        sys.exit(show(options.url, options.document))
    sys.exit(drain(options.url, timeout_seconds=options.timeout))


def start(given: list[str]) -> NoReturn:
    """Become SGLang, or end with what to change."""
    from duet_engine.plugin import starting

    try:
        command, environment = starting.prepare(os.environ, given)
    except ValueError as error:
        _say(f"duet-engine: {error}")
        sys.exit(2)
    _say(f"duet-engine: {shlex.join(command)}")
    os.execve(command[0], command, environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="duet-engine",
        usage="duet-engine [SGLANG ARGUMENT ...] | duet-engine COMMAND ...",
        description=(
            "Without a command: start SGLang as the environment says (DUET_ROLE, DUET_MODEL_ID, ...; docs/engine.md), "
            "with the given arguments of `sglang.launch_server` beside."
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    address = os.environ.get("POD_IP", "127.0.0.1")
    address = f"[{address}]" if ":" in address else address
    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument("--url", default=f"http://{address}:{DEFAULT_PORT}", help="the engine (default: %(default)s)")
    shown = commands.add_parser("show", parents=[engine], help="print one of the engine's documents")
    shown.add_argument("document", choices=DOCUMENTS)
    command = commands.add_parser(
        "drain", parents=[engine], help="refuse new work and wait until nothing is left (a pod's preStop)"
    )
    command.add_argument(
        "--timeout",
        type=float,
        default=_default_timeout_seconds(),
        help="seconds; afterwards end with status 1 (default: DUET_DRAIN_TIMEOUT_SECONDS, %(default)s)",
    )
    assert set(commands.choices) == set(COMMANDS)
    return parser


def _default_timeout_seconds() -> float:
    text = os.environ.get("DUET_DRAIN_TIMEOUT_SECONDS", str(DEFAULT_TIMEOUT_SECONDS))
    try:
        return float(text)
    except ValueError:
        raise SystemExit(f"DUET_DRAIN_TIMEOUT_SECONDS: must be a number of seconds, got {text!r}") from None


def drain(url: str, *, timeout_seconds: float) -> int:
    """Drain the engine at `url` and wait; the exit status."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            status = _renew(url)
        except ConnectionRefusedError:
            _say(f"{url} is gone: nothing is left to drain")
            return 0
        except DeniedError as error:
            _say(f"{url}{DRAIN_PATH}: {error}; the engine drains when it gets SIGTERM")
            return 1
        except (OSError, http.client.HTTPException, ValueError) as error:
            _say(f"{url}{DRAIN_PATH}: {error}; trying again")
        else:
            if status["phase"] == "drained" and status["idle_seconds"] >= SETTLE_SECONDS:
                _say("drained")
                return 0
            if status["phase"] == "terminating" and not any(status["remaining"].values()):
                _say("ending, and nothing is left")
                return 0
        if time.monotonic() >= deadline:
            _say(f"not drained after {timeout_seconds:g} s")
            return 1
        time.sleep(POLL_SECONDS)


def _say(message: str) -> None:
    """One line for the pod's events."""
    sys.stderr.write(f"{message}\n")


def show(url: str, document: str) -> int:
    """Print a document of the engine at `url`; the exit status."""
    try:
        content = _call(url, f"/duet/{document}")
    except (OSError, http.client.HTTPException, DeniedError) as error:
        _say(f"{url}/duet/{document}: {error}")
        return 1
    sys.stdout.write(content.decode() + "\n")
    return 0


class DeniedError(Exception):
    """The engine doesn't believe that this command belongs to its container."""


def _renew(url: str) -> dict[str, Any]:
    """Ask for the drain, or renew it; the worker's `DrainStatus`."""
    wanted = {"lease_seconds": LEASE_SECONDS, "requested_by": "preStop", "reason": "the pod ends"}
    document = json.loads(_call(url, DRAIN_PATH, json.dumps(wanted).encode()))
    if not isinstance(document, dict) or not {"phase", "idle_seconds", "remaining"} <= document.keys():
        raise ValueError(f"not a drain status: {str(document)[:200]}")
    return document


def _call(url: str, path: str, body: bytes | None = None) -> bytes:
    """Get something, or put `body`."""
    headers = {"content-type": "application/json", **_credentials()}
    method = "GET" if body is None else "PUT"
    request = urllib.request.Request(url.rstrip("/") + path, data=body, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5.0) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise DeniedError(f"{error.code}: {error.read(500).decode(errors='replace')}") from error
        raise
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from error


def _credentials() -> dict[str, str]:
    path = os.environ.get(LOCAL_TOKEN_VARIABLE)
    try:
        return {"authorization": f"Bearer {Path(path).read_text().strip()}"} if path else {}
    except OSError as error:
        _say(f"{LOCAL_TOKEN_VARIABLE}: {error}; calling without a token")
        return {}


if __name__ == "__main__":
    main()
