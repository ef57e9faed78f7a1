"""What SGLang needs to hand KV from prefill to decode workers on a machine without a GPU."""

from __future__ import annotations


def prepare() -> None:
    """Let Mooncake's sender take page numbers from ordinary memory: its other way uses pinned memory and events."""
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender

    MooncakeKVSender.supports_host_tensor_indices = False
