"""SGLang's own endpoints beside generation: probes, loads, facts, control.

Invariant: names, fields and statuses are those of SGLang 0.5.23; a field that has no meaning here is left out.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from duet_engine.protocol import Role
from duet_engine.simulated_engine.answers import respond_error
from duet_engine.simulated_engine.duet_endpoints import SGLANG_VERSION
from duet_engine.simulated_engine.generate import read_object
from duet_engine.simulated_engine.parsing import BadRequest

if TYPE_CHECKING:
    from duet_engine.simulated_engine.engine import Engine
    from duet_engine.simulated_engine.http_server import Exchange

HEALTH_SECONDS = 1.0
"""SGLang generates a token and looks once a second whether it has come."""
DISAGGREGATION_MODES = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.UNIFIED: "null"}
LOADS_SECTIONS = frozenset({"core", "memory", "spec", "lora", "disagg", "queues", "all"})


class SglangEndpoints:
    """What SGLang answers beside generation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._created = int(time.time())

    def ready(self, exchange: Exchange) -> None:
        exchange.respond(200 if self._serving() else 503, content_type="text/plain")

    def health(self, exchange: Exchange) -> None:
        if not self._serving():
            exchange.respond(503, content_type="text/plain")
            return
        asyncio.get_running_loop().call_later(HEALTH_SECONDS, self._answer_health, exchange)

    def _answer_health(self, exchange: Exchange) -> None:
        healthy = self._serving() and self._engine.live() is None
        exchange.respond(200 if healthy else 503, content_type="text/plain")

    def _serving(self) -> bool:
        return self._engine.ready and not self._engine.drain.active(self._engine.now())

    def models(self, exchange: Exchange) -> None:
        settings = self._engine.settings
        model = {
            "id": settings.served_name,
            "object": "model",
            "created": self._created,
            "owned_by": "sglang",
            "root": settings.served_name,
            "parent": None,
            "max_model_len": settings.context_length,
        }
        exchange.respond_json(200, {"object": "list", "data": [model]})

    def model_info(self, exchange: Exchange) -> None:
        settings = self._engine.settings
        exchange.respond_json(
            200,
            {
                "model_path": settings.model_path,
                "tokenizer_path": settings.model_path,
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": "default",
                "disaggregation_mode": DISAGGREGATION_MODES[settings.role],
            },
        )

    def server_info(self, exchange: Exchange) -> None:
        settings, profile, scheduler = self._engine.settings, self._engine.profile, self._engine.scheduler
        exchange.respond_json(
            200,
            {
                "model_path": settings.model_path,
                "revision": settings.model_revision,
                "served_model_name": settings.served_name,
                "host": settings.host,
                "port": settings.port,
                "context_length": settings.context_length,
                "tp_size": settings.tensor_parallel_size,
                "disaggregation_mode": DISAGGREGATION_MODES[settings.role],
                "disaggregation_bootstrap_port": settings.bootstrap_port,
                "disaggregation_transfer_backend": settings.transfer_backend,
                "num_reserved_decode_tokens": settings.reserved_decode_tokens,
                "chunked_prefill_size": profile.chunked_prefill_tokens,
                "max_running_requests": profile.max_running_requests,
                "max_total_num_tokens": profile.kv_capacity_tokens,
                "enable_mixed_chunk": settings.role is Role.DECODE,
                "disable_radix_cache": True,
                "enable_metrics": True,
                "version": SGLANG_VERSION,
                "internal_states": [
                    {
                        "effective_max_running_requests_per_dp": profile.max_running_requests,
                        "num_running_reqs": len(scheduler.running),
                        "memory_usage": {"token_capacity": profile.kv_capacity_tokens},
                    }
                ],
            },
        )

    def loads(self, exchange: Exchange) -> None:
        sections = set(exchange.query.get("include", "core").split(","))
        unknown = sections - LOADS_SECTIONS
        if unknown:
            known = ", ".join(sorted(LOADS_SECTIONS))
            message = f"include: {', '.join(sorted(unknown))} unknown; known are {known}"
            respond_error(exchange, message, status=400, kind="BadRequest")
            return
        if exchange.query.get("format", "json") != "json":
            respond_error(exchange, "format: only json is simulated", status=400, kind="BadRequest")
            return
        document = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            "version": SGLANG_VERSION,
            "dp_rank_count": 1,
            "loads": [self._load(sections)],
        }
        exchange.respond_json(200, document)

    def _load(self, sections: set[str]) -> dict[str, Any]:
        scheduler, profile = self._engine.scheduler, self._engine.profile
        work, totals = scheduler.work(), scheduler.totals
        waiting = work.queued + work.deflected + work.prefill_bootstrap + work.decode_prealloc
        uncomputed = scheduler.queued_prefill_tokens() + scheduler.queued_deflected_tokens()
        capacity = profile.kv_capacity_tokens
        load: dict[str, Any] = {
            "dp_rank": 0,
            "num_running_reqs": work.running,
            "num_waiting_reqs": waiting,
            "num_waiting_uncached_tokens": uncomputed,
            "num_used_tokens": scheduler.kv.used_tokens,
            "num_total_tokens": scheduler.kv.used_tokens + uncomputed,
            "num_active_tokens": scheduler.context_tokens,
            "max_total_num_tokens": capacity,
            "max_running_requests": profile.max_running_requests,
            "token_usage": round(scheduler.kv.used_tokens / capacity, 4),
            "gen_throughput": round(self._engine.generation_tokens_per_second(), 2),
            "cache_hit_rate": 0.0,
            "utilization": round(work.running / profile.max_running_requests, 4),
            "total_prefill_uncached_tokens": totals.prefill_tokens,
            "total_prefill_busy_us": int(totals.prefill_busy_seconds * 1e6),
        }
        if sections & {"disagg", "all"}:
            load["disaggregation"] = {
                "mode": DISAGGREGATION_MODES[self._engine.settings.role],
                "prefill_bootstrap_queue_reqs": work.prefill_bootstrap,
                "prefill_inflight_queue_reqs": work.prefill_inflight,
                "decode_prealloc_queue_reqs": work.decode_prealloc,
                "decode_transfer_queue_reqs": work.decode_transfer,
                "decode_retracted_queue_reqs": work.queued if self._engine.settings.role is Role.DECODE else 0,
            }
        if sections & {"queues", "all"}:
            load["queues"] = {"waiting": work.queued + work.deflected, "grammar": 0, "paused": 0, "retracted": 0}
        if sections & {"memory", "all"}:
            load["memory"] = {"token_capacity": capacity}
        return load

    def abort_request(self, exchange: Exchange) -> None:
        try:
            body = read_object(exchange.body)
        except BadRequest as error:
            respond_error(exchange, str(error), status=400, kind="BadRequest")
            return
        rid = body.get("rid")
        if body.get("abort_all"):
            self._engine.abort(rid_prefix="")
        elif isinstance(rid, str) and rid:
            self._engine.abort(rid_prefix=rid)
        else:
            respond_error(exchange, "rid: must be given, or abort_all", status=400, kind="BadRequest")
            return
        exchange.respond(200)

    def flush_cache(self, exchange: Exchange) -> None:
        if self._engine.scheduler.work().total:
            message = "Failed to flush cache: there are running or waiting requests.\n"
            exchange.respond(400, message.encode(), content_type="text/plain")
            return
        message = "Cache flushed.\n"
        exchange.respond(200, message.encode(), content_type="text/plain")
