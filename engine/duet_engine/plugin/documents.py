"""One worker in the words of the protocol.

Invariant: a document is made from what is known already; making it asks nobody.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from duet_engine.plugin import features
from duet_engine.protocol import Role, WorkerInfo, WorkerState

if TYPE_CHECKING:
    from duet_engine.plugin.server_side import ServerSide


ROLES = tuple(Role)


def worker_info(side: ServerSide) -> WorkerInfo:
    """`GET /duet/info`."""
    inactive = side.inactive_reason()
    role = side.role
    return WorkerInfo(
        **side.stamp(),
        worker=side.worker,
        role=role,
        revision=side.settings.revision,
        engine_name="sglang",
        engine_version=side.sglang_version,
        plugin_version=version("duet-serve"),
        plugin_active=inactive is None,
        inactive_reason=inactive,
        processes=tuple(side.processes()),
        bootstrap_port=side.server_args.disaggregation_bootstrap_port if role is Role.PREFILL else None,
        gpu_partition=side.settings.gpu_partition,
        features=features.matrix(role),
        prefix_cache=_keeps_prefixes(side.server_args, role),
        profile=side.profile(),
    )


def _keeps_prefixes(server_args: Any, role: Role) -> bool:  # noqa: ANN401 - SGLang's
    """Whether SGLang's radix cache is on; on decode workers it only is where it was asked for."""
    asked_for = role is not Role.DECODE or getattr(server_args, "disaggregation_decode_enable_radix_cache", False)
    return bool(asked_for) and not getattr(server_args, "disable_radix_cache", True)


def worker_state(side: ServerSide, *, now: float) -> WorkerState:
    """`GET /duet/state`; `now` by the monotonic clock."""
    facts = side.facts
    draining = side.terminating or side.drain.active(now)
    ready = side.serving and side.active(now) and not draining
    return WorkerState(
        **side.stamp(),
        worker=side.worker,
        role=ROLES[int(facts.role)],
        revision=side.settings.revision,
        ready=ready,
        draining=draining,
        deflection_active=ready and bool(facts.deflection_active),
        knobs_generation=side.knobs.generation,
        work=side.work(),
        queued_prefill_tokens=int(facts.queued_prefill_tokens),
        queued_deflected_tokens=int(facts.queued_deflected_tokens),
        decode_requests=int(facts.decode_requests),
        decode_context_tokens=int(facts.decode_context_tokens),
        kv_used_tokens=int(facts.kv_used_tokens),
        kv_reserved_tokens=int(facts.kv_reserved_tokens),
        kv_capacity_tokens=int(facts.kv_capacity_tokens),
        step=facts.kind,
        step_started_at_seconds=time.time() - (now - facts.step_started_at) if facts.step_started_at else 0.0,
        step_predicted_seconds=facts.step_predicted_seconds,
        headroom_tokens_per_second=facts.headroom_tokens_per_second if ready else 0.0,
        accepted=side.accepted_by(now),
        prefill_tokens_total=int(facts.prefill_tokens_total),
        deflected_tokens_total=int(facts.deflected_tokens_total),
        deflected_requests_total=int(facts.deflected_requests_total),
        output_tokens_total=int(facts.output_tokens_total),
        refusals_total=sum(side.refusals.values()),
        busy_seconds_total=facts.busy_seconds_total,
    )
