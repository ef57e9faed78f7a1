"""One line for each request that explains what became of it. Never a prompt, an answer or a key.

Invariant: a line holds only what this gateway computed or was configured with, and no line break.
"""

from __future__ import annotations

import logging

from duet_engine.gateway.record import RequestRecord

log = logging.getLogger("duet_engine.gateway.access")


def log_access(record: RequestRecord, *, total_seconds: float) -> None:
    """Say how a request ended."""
    if not log.isEnabledFor(logging.INFO):
        return
    log.info(
        "%s %s%s class=%s key=%s prompt=%d cached=%d output=%d ttft=%.0fms predicted=%.0fms total=%.0fms waited=%.0fms "
        "retries=%d route=[%s] rid=%s%s",
        record.path,
        record.end,
        " stream" if record.streamed else "",
        record.class_name,
        record.key or "-",
        record.prompt_tokens,
        record.cached_tokens,
        record.output_tokens,
        record.ttft_seconds * 1e3,
        record.predicted_ttft_seconds * 1e3,
        total_seconds * 1e3,
        record.waited_seconds * 1e3,
        record.retries,
        record.route,
        record.rid,
        f" error={record.error!r}" if record.error else "",
    )
