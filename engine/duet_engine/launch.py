"""`duet-engine`: commands of an engine pod's container.

Invariant: `duet-engine drain` ends with 0 only when the worker holds nothing any more, or is gone; it needs nothing
but the standard library, because a pod's grace period runs while it starts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

DRAIN_PATH = "/duet/drain"
DEFAULT_PORT = 30_000
DEFAULT_TIMEOUT_SECONDS = 600.0
LEASE_SECONDS = 30.0
"""Renewed all the time; runs out soon after this command is killed."""
POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.0
"""How long the worker must have been empty: requests may still be on their way from a gateway that hasn't heard."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = _parser()
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        parser.print_help(sys.stderr)
        sys.exit(2)
    options = parser.parse_args(given)
    sys.exit(drain(options.url, timeout_seconds=options.timeout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duet-engine", description="Commands of an engine pod.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("drain", help="refuse new work and wait until nothing is left (a pod's preStop)")
    address = os.environ.get("POD_IP", "127.0.0.1")
    address = f"[{address}]" if ":" in address else address
    command.add_argument("--url", default=f"http://{address}:{DEFAULT_PORT}", help="the engine (default: %(default)s)")
    command.add_argument(
        "--timeout",
        type=float,
        default=_default_timeout_seconds(),
        help="seconds; afterwards end with status 1 (default: DUET_DRAIN_TIMEOUT_SECONDS, %(default)s)",
    )
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


def _renew(url: str) -> dict[str, Any]:
    """Ask for the drain, or renew it; the worker's `DrainStatus`."""
    body = json.dumps({"lease_seconds": LEASE_SECONDS, "requested_by": "preStop", "reason": "the pod ends"}).encode()
    request = urllib.request.Request(
        url.rstrip("/") + DRAIN_PATH, data=body, method="PUT", headers={"content-type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5.0) as response:
            document = json.load(response)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from error
    if not isinstance(document, dict) or not {"phase", "idle_seconds", "remaining"} <= document.keys():
        raise ValueError(f"not a drain status: {str(document)[:200]}")
    return document


if __name__ == "__main__":
    main()
