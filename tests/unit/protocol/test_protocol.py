"""Documents stay readable by their neighbours: golden files of each, tolerance of the future, clear refusals.

`golden/vN/NAME.json` is what version N wrote. Files of the current version must equal what is written today; files of
older versions must still be read. To change the protocol, raise PROTOCOL_VERSION, keep the old folder, and let
`DUET_WRITE_GOLDEN=1` make the new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from duet_engine import protocol
from duet_engine.protocol import (
    PROTOCOL_VERSION,
    ClassDemand,
    ClassPlan,
    Dispatch,
    Document,
    DrainPhase,
    DrainRequest,
    DrainStatus,
    GatewayDemand,
    Histogram,
    HookStatus,
    Knobs,
    KnobsApplied,
    Message,
    MissCause,
    PlanApplied,
    ProcessInfo,
    ProtocolError,
    Refusal,
    RefusalReason,
    Role,
    RoutingPlan,
    StepKind,
    Trust,
    Work,
    WorkerInfo,
    WorkerProfile,
    WorkerReport,
    WorkerState,
)

GOLDEN = Path(__file__).parent / "golden"
HEAD = {"instance_id": "0f3a", "sequence": 7, "written_at_seconds": 1_700_000_000.25}

PROFILE = WorkerProfile(
    digest="d1",
    role=Role.DECODE,
    model_id="Qwen/Qwen3-8B",
    gpu="h100-sxm",
    kv_capacity_tokens=400_000,
    max_running_requests=256,
    chunked_prefill_tokens=8192,
    replica={"shape": {"layers": 36}, "gpu": {"name": "h100-sxm", "sms": 132}, "ranks": 1},
    basis="kernel-composed",
)
STATE = WorkerState(
    **HEAD,
    worker="qwen3-8b-decode-0",
    role=Role.DECODE,
    revision="r1",
    ready=True,
    deflection_active=True,
    knobs_generation=3,
    work=Work(running=4, queued=1, deflected=1, decode_prealloc=1, decode_transfer=2),
    queued_deflected_tokens=900,
    decode_requests=4,
    decode_context_tokens=5200,
    kv_used_tokens=6000,
    kv_reserved_tokens=2048,
    kv_capacity_tokens=400_000,
    step=StepKind.MIXED,
    step_started_at_seconds=1_700_000_000.2,
    step_predicted_seconds=0.031,
    headroom_tokens_per_second=9000.0,
    accepted={"0f3a": 41},
    prefill_tokens_total=10_000,
    deflected_tokens_total=9000,
    deflected_requests_total=9,
    output_tokens_total=5000,
    refusals_total=1,
    busy_seconds_total=12.5,
)
HISTOGRAM = Histogram(bounds=(0.1, 1.0), counts=(3, 2, 1), sum=4.5)
DOCUMENTS: tuple[Message, ...] = (
    STATE,
    WorkerInfo(
        **HEAD,
        worker="qwen3-8b-decode-0",
        role=Role.DECODE,
        revision="r1",
        engine_version="0.5.23",
        plugin_version="0.1.0",
        plugin_active=True,
        processes=(ProcessInfo(name="scheduler", hooks=(HookStatus(target="Scheduler.run_batch", active=True),)),),
        bootstrap_port=8998,
        gpu_partition="3g.40gb",
        features={"logprobs": {"deflected": "works", "mixed": "turns mixing off"}},
        profile=PROFILE,
    ),
    DrainRequest(
        **HEAD, lease_seconds=30, requested_by="duet-operator", reason="scale-down", worker="qwen3-8b-decode-0"
    ),
    DrainStatus(
        **HEAD,
        worker="qwen3-8b-decode-0",
        phase=DrainPhase.DRAINING,
        lease_remaining_seconds=21.5,
        remaining=Work(running=2),
    ),
    Knobs(**HEAD, generation=3, itl_milliseconds=50),
    KnobsApplied(**HEAD, generation=3, changed=True),
    Dispatch(gateway="0f3a", sequence=42, deflected=True, chunk_schedule_tokens=(512, 256), uncached_tokens=700),
    Refusal(reason=RefusalReason.NO_KV, message="no room for 9000 tokens", retry_after_seconds=1.0),
    GatewayDemand(
        **HEAD,
        gateway="qwen3-8b-gateway-0",
        started_at_seconds=1_699_999_000.0,
        generation=3,
        waiting_requests=1,
        waiting_tokens=800,
        inflight_requests=12,
        loop_lag_p99_seconds=0.002,
        classes=(
            ClassDemand(
                arrivals_total=20,
                completed_total=18,
                failed_total=1,
                met_both_total=17,
                met_ttft_total=17,
                met_itl_total=18,
                missed_total={MissCause.QUEUE: 1},
                input_tokens_total=20_000,
                output_tokens_total=4000,
                deflected_requests_total=3,
                deflected_tokens_total=2900,
                ttft_seconds=HISTOGRAM,
                itl_seconds=HISTOGRAM,
                tpot_seconds=HISTOGRAM,
                input_tokens=HISTOGRAM,
                output_tokens=HISTOGRAM,
            ),
        ),
        workers=(
            WorkerReport(
                worker="qwen3-8b-decode-0",
                uid="u1",
                address="10.244.0.7:30000",
                role=Role.DECODE,
                revision="r1",
                profile_digest="d1",
                reachable=True,
                state=STATE,
                state_age_seconds=0.04,
                inflight=4,
            ),
        ),
        profiles=(PROFILE,),
    ),
    RoutingPlan(
        **HEAD,
        generation=3,
        lease_seconds=15,
        saturated=True,
        dispatch_share=0.5,
        deflected_share=0.2,
        classes=(ClassPlan(prefill_occupancy=0.3, mixed_occupancy=1.5, solo_occupancy=4.0),),
    ),
    PlanApplied(**HEAD, generation=3, lease_remaining_seconds=15),
    Trust(
        audience="duet-engine/models/qwen3-8b",
        issuer="https://kubernetes.default.svc",
        keys=({"kid": "k1", "kty": "RSA", "alg": "RS256", "n": "AQAB", "e": "AQAB"},),
        callers=("system:serviceaccount:models:qwen3-8b-gateway",),
    ),
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_golden_file_of_this_version(document: Message) -> None:
    file = GOLDEN / f"v{PROTOCOL_VERSION}" / f"{type(document).__name__}.json"
    written = json.dumps(json.loads(document.write()), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("DUET_WRITE_GOLDEN"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(written)
    assert written == file.read_text(), "the wire format changed: see this module's docstring"


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("v*/*.json")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_older_document_is_read(file: Path) -> None:
    kind: type[Message] = getattr(protocol, file.stem)
    kind.read(file.read_bytes())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_round_trip_and_fields_of_the_future(document: Message) -> None:
    wire = json.loads(document.write())
    assert type(document).read(json.dumps(wire)) == document
    wire |= {"version": PROTOCOL_VERSION + 1, "a_field_of_the_future": {"nested": [1, 2]}}
    read = type(document).read(json.dumps(wire))
    assert read.model_dump(exclude={"version"}) == document.model_dump(exclude={"version"})


def test_every_document_has_a_golden_file() -> None:
    """A document that nobody pins can drift."""
    kinds = {kind for kind in vars(protocol).values() if isinstance(kind, type) and issubclass(kind, Document)}
    assert kinds - {Document} <= {type(document) for document in DOCUMENTS}


def test_a_bad_document_names_itself_and_the_field() -> None:
    with pytest.raises(ProtocolError, match=r"DrainRequest: lease_seconds: .*greater than 0"):
        DrainRequest.read(b'{"lease_seconds": -1}')
    with pytest.raises(ProtocolError, match=r"Knobs: document: .*JSON"):
        Knobs.read(b"not json")


def test_work_counts_every_place() -> None:
    places = dict.fromkeys(Work.model_fields, 1)
    assert Work(**places).total == len(Work.model_fields)
