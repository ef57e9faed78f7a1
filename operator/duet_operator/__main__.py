"""`duet-operator`: reads the settings, sets up the log, runs the operator.

Exit status: 0 after SIGTERM or SIGINT, 1 when the Lease was lost or something failed, 2 for unusable settings.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import sys
from dataclasses import fields
from datetime import UTC, datetime

from duet_operator.cluster import ClusterError
from duet_operator.lease import LeaseLostError
from duet_operator.process import run
from duet_operator.settings import PREFIX, LogFormat, Settings, SettingsError, from_environment, package_version

logger = logging.getLogger("duet_operator")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_log(form: LogFormat, level: str) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def allow_many_connections() -> None:
    """As many as the system allows: each gateway that doesn't answer holds one until its time is over."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _parse_arguments() -> None:
    """There is nothing to parse but a question: an operator that starts when it's asked for help would act."""
    settings = "\n".join(f"  {PREFIX}{field.name.upper()}" for field in fields(Settings))
    parser = argparse.ArgumentParser(
        prog="duet-operator",
        description="Run the operator against the cluster that it is in, or that KUBECONFIG names.",
        epilog=f"Settings are environment variables:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=package_version())
    parser.parse_args()


def main() -> None:
    """Run until told to stop."""
    _parse_arguments()
    try:
        settings = from_environment(os.environ)
    except SettingsError as error:
        print(f"duet-operator: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        sys.exit(2)
    set_up_log(settings.log_format, settings.log_level)
    allow_many_connections()
    logger.info("duet-operator %s starts", package_version())
    try:
        asyncio.run(run(settings, kubeconfig=os.environ.get("KUBECONFIG") or None))
    except LeaseLostError as error:
        logger.error("ends, so that another operator may act: %s", error)
        sys.exit(1)
    except ClusterError as error:
        logger.error("ends: %s", error)
        sys.exit(1)
    logger.info("duet-operator ends")


if __name__ == "__main__":
    main()
