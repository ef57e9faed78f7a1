"""What a worker's state stream says: the numbers of `/duet/state` that routing reads.

Invariant: a report is a value of one moment; whoever reads it later knows when it was written.
"""

from __future__ import annotations

from typing import NamedTuple


class PrefillReport(NamedTuple):
    """What a prefill worker's state stream says."""

    written_at: float
    queued_seconds: float
    """Believed work of all prompts that aren't computed."""
    queued_tokens: int
    step_started_at: float | None


class DecodeReport(NamedTuple):
    """What a decode worker's state stream says."""

    written_at: float
    requests: int
    """Running and arriving."""
    context_tokens: int
    kv_free_tokens: int
    """Less what requests queue for."""
    local_requests: int
    local_prefill_tokens: int
    running: int
