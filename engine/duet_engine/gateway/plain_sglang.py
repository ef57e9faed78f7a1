"""A plain SGLang server as a worker: what it is from `/server_info`, its load from `/v1/loads`, twice a second.

Invariant: the same documents come out as from an engine with Duet's plugin, so that nothing behind it knows the
difference; what a plain server can't do (deflection, drain leases, knobs) is reported as absent, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from duet_engine.gateway.workers import Worker
from duet_engine.perf.catalog import REFERENCE_MODEL, profile, with_digest
from duet_engine.protocol import ProtocolError, Role, Work, WorkerInfo, WorkerProfile, WorkerState

POLL_SECONDS = 0.5
"""One answer costs the server some 14 ms."""
ASSUMED_GPU = "h100-sxm"
"""For step times of a model or GPU that nobody named: predictions are then good for comparing workers only."""
_INFO_PATH, _LOADS_PATH, _READY_PATH = "/server_info", "/v1/loads", "/ready"
_ROLES = {"null": Role.UNIFIED, "prefill": Role.PREFILL, "decode": Role.DECODE}


@dataclass(frozen=True, slots=True)
class PlainServer:
    """Asks one server. `headers` prove who asks."""

    worker: Worker
    session: aiohttp.ClientSession
    timeout: aiohttp.ClientTimeout
    headers: Callable[[], dict[str, str]]

    async def info(self) -> WorkerInfo:
        """What it is.

        Raises:
            aiohttp.ClientError, TimeoutError, ProtocolError: it can't be reached, or isn't SGLang.
        """
        said = await self._get(_INFO_PATH)
        mode = str(said.get("disaggregation_mode") or "null")
        if mode not in _ROLES:
            raise ProtocolError(f"{_INFO_PATH}: disaggregation_mode: {mode!r} is no role")
        role = _ROLES[mode]
        return WorkerInfo(
            worker=self.worker.name,
            role=role,
            engine_version=str(said.get("version", "")),
            inactive_reason="a plain SGLang server, without the plugin",
            bootstrap_port=_whole(said, "disaggregation_bootstrap_port") or None,
            profile=_profile(said, role=role, gpu=self.worker.member.gpu or ASSUMED_GPU),
        )

    async def state(self) -> WorkerState:
        """Its load now, and that it knows of everything that was sent before it was asked.

        Raises:
            aiohttp.ClientError, TimeoutError, ProtocolError: it can't be reached, or isn't SGLang.
        """
        sent = self.worker.dispatches
        ready = await self._ready()
        loads = (await self._get(_LOADS_PATH, include="core,disagg")).get("loads")
        if not isinstance(loads, list) or not loads:
            raise ProtocolError(f"{_LOADS_PATH}: no loads")
        return _state(self.worker, loads, ready=ready, sent=sent)

    async def _get(self, path: str, **query: str) -> dict[str, Any]:
        async with self.session.get(
            self.worker.member.url + path, params=query, headers=self.headers(), timeout=self.timeout
        ) as response:
            content = await response.read()
            if response.status != HTTPStatus.OK:
                raise ProtocolError(f"{path} answered {response.status}: {content[:200].decode(errors='replace')}")
        document = json.loads(content)
        if not isinstance(document, dict):
            raise ProtocolError(f"{path}: not a JSON object")
        return document

    async def _ready(self) -> bool:
        """503 while it starts, is paused or ends; a version without the endpoint is ready when it answers at all."""
        async with self.session.get(
            self.worker.member.url + _READY_PATH, headers=self.headers(), timeout=self.timeout
        ) as response:
            return response.status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND)


def _profile(said: Mapping[str, Any], *, role: Role, gpu: str) -> WorkerProfile:
    ranks = _whole(said, "tp_size") or 1
    try:
        known = profile(gpu, str(said.get("model_path", "")), role=role, tensor_parallel_size=ranks)
    except (ValueError, OSError):
        known = profile(ASSUMED_GPU, REFERENCE_MODEL, role=role)
    own = {
        "model_id": str(said.get("model_path", "")),
        "gpus_per_replica": ranks,
        "kv_capacity_tokens": _whole(said, "max_total_num_tokens") or known.kv_capacity_tokens,
        "max_running_requests": _whole(said, "max_running_requests") or known.max_running_requests,
        "chunked_prefill_tokens": _whole(said, "chunked_prefill_size") or known.chunked_prefill_tokens,
        "basis": "assumed",
    }
    return with_digest(known.model_copy(update=own))


def _state(worker: Worker, loads: list[dict[str, Any]], *, ready: bool, sent: int) -> WorkerState:
    """Of all data-parallel ranks together."""
    queues = [load.get("disaggregation") or {} for load in loads]
    running, waiting = _total(loads, "num_running_reqs"), _total(loads, "num_waiting_reqs")
    work = Work(
        running=running,
        queued=max(0, waiting - sum(_total(queues, name) for name in _QUEUES.values())),
        **{field: _total(queues, name) for field, name in _QUEUES.items()},
    )
    decodes = worker.member.role is not Role.PREFILL
    used = _total(loads, "num_used_tokens")
    return WorkerState(
        worker=worker.name,
        role=worker.member.role,
        ready=ready,
        work=work,
        queued_prefill_tokens=_total(loads, "num_waiting_uncached_tokens"),
        decode_requests=running if decodes else 0,
        decode_context_tokens=(_total(loads, "num_active_tokens") or used) if decodes else 0,
        kv_used_tokens=used,
        kv_capacity_tokens=_total(loads, "max_total_num_tokens"),
        accepted={worker.gateway_id: sent},
    )


_QUEUES = {
    "prefill_bootstrap": "prefill_bootstrap_queue_reqs",
    "prefill_inflight": "prefill_inflight_queue_reqs",
    "decode_prealloc": "decode_prealloc_queue_reqs",
    "decode_transfer": "decode_transfer_queue_reqs",
}


def _total(parts: list[dict[str, Any]], name: str) -> int:
    return sum(_whole(part, name) for part in parts)


def _whole(part: Mapping[str, Any], name: str) -> int:
    """A count; 0 where it is missing or none."""
    value = part.get(name)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0
