"""What operator, gateway and engine say to each other: every document, once.

Invariant: a reader ignores fields that it doesn't know and has a default for every field that was added after
version 1, so that a component of version N works with one of version N-1 in either direction. A document's `version`
tells who wrote it; a reader never refuses a newer one. Names on the wire are the names here. Times are seconds since
the Unix epoch by the writer's clock, for people and logs; readers measure age by their own clock from the moment of
reading and use `sequence` for order. Counters named `_total` only grow while `instance_id` stays the same; a new
instance starts them at zero.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROTOCOL_VERSION = 1

STATE_PATH = "/duet/state"
INFO_PATH = "/duet/info"
READY_PATH = "/duet/ready"
LIVE_PATH = "/duet/live"
DRAIN_PATH = "/duet/drain"
KNOBS_PATH = "/duet/knobs"
DEMAND_PATH = "/duet/demand"
PLAN_PATH = "/duet/plan"

DISPATCH_FIELD = "duet"
"""Field of a request's JSON body that carries a `Dispatch`. Gateways strip the client's own."""
REFUSAL_HEADER = "x-duet-refused"
"""Response header with a `RefusalReason`: this worker did nothing for the request, another may take it at once."""
ROUTE_HEADER = "x-duet-route"
TOKEN_AUDIENCE = "duet-engine"
"""First part of the audience of tokens for engines; the whole names the object, see `token_audience`."""
GATEWAY_TOKEN_AUDIENCE = "duet-gateway"
"""The same for gateways."""

ENGINE_PORT = 30000
BOOTSTRAP_PORT = 8998
GATEWAY_PORT = 8000
GATEWAY_ADMIN_PORT = 8001


class ProtocolError(ValueError):
    """A document that can't be read; the message names the document and the field."""


class Message(BaseModel):
    """A document or a part of one: immutable, tolerant of fields from the future."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), ser_json_inf_nan="null")

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """Parse JSON from another component.

        Raises:
            ProtocolError: naming this document and the first bad field.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise ProtocolError(f"{cls.__name__}: {where}: {first['msg']}") from error

    def write(self) -> bytes:
        """The document as compact JSON; absent optional fields are left out."""
        return self.model_dump_json(exclude_none=True).encode()


class Document(Message):
    """A whole message: says which protocol version wrote it, which process, and the how-manieth it is."""

    version: int = PROTOCOL_VERSION
    instance_id: str = ""
    sequence: int = 0
    written_at_seconds: float = 0.0


class Role(StrEnum):
    """What a worker is. `unified` does prefill and decode of its own requests, as SGLang's null mode does."""

    PREFILL = "prefill"
    DECODE = "decode"
    UNIFIED = "unified"


# --- engine: performance facts ---


class WorkerProfile(Message):
    """What one replica can do. Workers of one pool and revision share it, so documents carry it once per digest."""

    digest: str
    role: Role
    model_id: str
    gpu: str = ""
    gpus_per_replica: int = Field(default=1, ge=1)
    kv_capacity_tokens: int = Field(ge=0)
    max_running_requests: int = Field(ge=1)
    chunked_prefill_tokens: int = Field(ge=1)
    replica: dict[str, Any]
    """Everything that its step times depend on, as `duet_engine.perf.replica` writes and reads it."""
    basis: Literal["measured", "kernel-composed", "data-sheet", "assumed"] = "assumed"
    """What the steps of its role rest on."""


# --- engine: /duet/info ---


class HookStatus(Message):
    """One hook of the plugin in one process: whether its target was found and replaced."""

    target: str
    active: bool
    reason: str | None = None


class ProcessInfo(Message):
    """One process of the engine. An engine is active only when all its processes are."""

    name: str
    rank: int = 0
    pid: int = 0
    heartbeat_age_seconds: float = 0.0
    hooks: tuple[HookStatus, ...] = ()


class WorkerInfo(Document):
    """`GET /duet/info`: what this worker is and which parts of Duet are active in it."""

    worker: str
    role: Role
    revision: str = ""
    engine_name: str = "sglang"
    engine_version: str = ""
    plugin_version: str = ""
    plugin_active: bool = False
    inactive_reason: str | None = None
    processes: tuple[ProcessInfo, ...] = ()
    bootstrap_port: int | None = None
    gpu_partition: str | None = None
    features: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Feature -> mode (deflected, mixed, split, look_ahead) -> "works" or the reason for which it is refused."""
    prefix_cache: bool = False
    """Whether it keeps the KV of prompts for later ones that begin alike."""
    profile: WorkerProfile


# --- engine: /duet/state ---


class StepKind(StrEnum):
    """What the worker's GPU does now: one forward pass, or nothing."""

    IDLE = "idle"
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    SPLIT = "split"


class Work(Message):
    """Requests that a worker holds, by place. All zero means that nothing is lost if it stops."""

    running: int = 0
    queued: int = 0
    deflected: int = 0
    prefill_bootstrap: int = 0
    prefill_inflight: int = 0
    decode_prealloc: int = 0
    decode_transfer: int = 0

    @property
    def total(self) -> int:
        return (
            self.running
            + self.queued
            + self.deflected
            + self.prefill_bootstrap
            + self.prefill_inflight
            + self.decode_prealloc
            + self.decode_transfer
        )


class WorkerState(Document):
    """`GET /duet/state`: the worker now. With `?stream=1` a line each 100 ms or on a big change.

    Token counts are uncached tokens: what the worker must still compute.
    """

    worker: str
    role: Role
    revision: str = ""
    ready: bool = False
    draining: bool = False
    deflection_active: bool = False
    knobs_generation: int = 0
    work: Work = Work()
    queued_prefill_tokens: int = 0
    queued_deflected_tokens: int = 0
    decode_requests: int = 0
    decode_context_tokens: int = 0
    kv_used_tokens: int = 0
    kv_reserved_tokens: int = 0
    kv_capacity_tokens: int = 0
    step: StepKind = StepKind.IDLE
    step_started_at_seconds: float = 0.0
    step_predicted_seconds: float = 0.0
    headroom_tokens_per_second: float = 0.0
    """Deflected prefill tokens per second that fit beside the present decode batch inside the ITL objective."""
    accepted: dict[str, int] = Field(default_factory=dict)
    """Gateway instance -> last dispatch sequence of it that this state includes."""
    prefill_tokens_total: int = 0
    deflected_tokens_total: int = 0
    deflected_requests_total: int = 0
    output_tokens_total: int = 0
    refusals_total: int = 0
    busy_seconds_total: float = 0.0


# --- engine: drain ---


class DrainPhase(StrEnum):
    """Serving -> draining -> drained; back to serving on cancel or when the lease runs out. Terminating is final."""

    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"
    TERMINATING = "terminating"


class DrainRequest(Document):
    """`PUT /duet/drain`: refuse new work from now on, for as long as the lease is renewed."""

    lease_seconds: float = Field(gt=0, le=86_400)
    requested_by: str = ""
    reason: str = ""
    worker: str = ""
    """Who is meant; another worker that has the address by now refuses with status 409. Empty: whoever hears it."""


class DrainStatus(Document):
    """Answer of PUT, GET and DELETE `/duet/drain`."""

    worker: str
    phase: DrainPhase
    lease_remaining_seconds: float = 0.0
    idle_seconds: float = 0.0
    """How long all of `remaining` has been zero."""
    remaining: Work = Work()


# --- engine: knobs ---


class Knobs(Document):
    """`PUT /duet/knobs`: live settings, ordered by the object's generation; an older generation changes nothing."""

    generation: int = Field(ge=0)
    itl_milliseconds: int = Field(gt=0)
    deflection_enabled: bool = True
    beta_percent: int = Field(default=85, gt=0, le=100)
    chunk_candidates_tokens: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    multiplexing: Literal["Auto", "On", "Off"] = "Auto"
    max_look_ahead: int = Field(default=8, ge=1)


class KnobsApplied(Document):
    """Answer of `PUT /duet/knobs`: the generation now in force."""

    generation: int
    changed: bool


# --- gateway to engine: a request ---


class Dispatch(Message):
    """Gateway's part of a request's body, under `DISPATCH_FIELD`."""

    version: int = PROTOCOL_VERSION
    gateway: str
    """Gateway's instance id, the key of `WorkerState.accepted`."""
    sequence: int
    """Counts this gateway's dispatches to this worker."""
    deflected: bool = False
    """True: prefill here, no bootstrap. Only a decode worker takes it."""
    chunk_schedule_tokens: tuple[int, ...] = ()
    """Upper bounds for the successive chunks; empty leaves them to the worker. The worker may take smaller ones."""
    chunk_budget_tokens: int | None = Field(default=None, ge=0)
    """Upper bound for every chunk; with 0 the worker computes none, waits a while for nothing, and refuses."""
    uncached_tokens: int | None = None


class RefusalReason(StrEnum):
    """Why a worker took nothing of a request; the gateway goes elsewhere at once."""

    DRAINING = "draining"
    NOT_READY = "not-ready"
    NO_KV = "no-kv"
    ITL_UNSAFE = "itl-unsafe"
    QUEUE_FULL = "queue-full"
    DEFLECTION_OFF = "deflection-off"
    WRONG_ROLE = "wrong-role"
    UNSUPPORTED = "unsupported"
    """This request can't be deflected to any worker; by way of a prefill worker it can be served."""


class Refusal(Message):
    """Body of a refusal: HTTP 503 with `REFUSAL_HEADER` and Retry-After."""

    version: int = PROTOCOL_VERSION
    reason: RefusalReason
    message: str
    retry_after_seconds: float = Field(default=1.0, ge=0)


# --- gateway to operator: the demand document ---


class Histogram(Message):
    """Monotonic counts per bucket: `counts[i]` observations in (`bounds[i-1]`, `bounds[i]`]; the last is overflow.

    Documents of one instance are subtracted count by count; those of several instances with equal bounds are added.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float = 0.0


class MissCause(StrEnum):
    """Why a request missed an objective. Only queue, engine and gate misses mean too little capacity."""

    INFEASIBLE = "infeasible"
    GATEWAY = "gateway"
    CLIENT = "client"
    QUEUE = "queue"
    ENGINE = "engine"
    GATE = "gate"


class ClassDemand(Message):
    """Counters of one class of requests; the only class of an object without classes is `default`."""

    name: str = "default"
    arrivals_total: int = 0
    completed_total: int = 0
    failed_total: int = 0
    rejected_total: int = 0
    given_up_total: int = 0
    """Their clients left without a first token when it was late already: judged, as missed."""
    refused_total: int = 0
    """Wrong in themselves, as the engine said; in the arrivals, not judged."""
    refused_input_tokens_total: int = 0
    """Their prompts, in `input_tokens_total` too."""
    met_both_total: int = 0
    met_ttft_total: int = 0
    met_itl_total: int = 0
    missed_total: dict[MissCause, int] = Field(default_factory=dict)
    input_tokens_total: int = 0
    cached_tokens_total: int = 0
    output_tokens_total: int = 0
    deflected_requests_total: int = 0
    deflected_tokens_total: int = 0
    ttft_seconds: Histogram
    itl_seconds: Histogram
    """Every gap of every request, weighted by tokens."""
    tpot_seconds: Histogram
    input_tokens: Histogram
    output_tokens: Histogram
    waiting_requests: int = 0
    """At the gateway, now."""


class WorkerReport(Message):
    """One worker as this gateway sees it."""

    worker: str
    """Pod name."""
    uid: str = ""
    """Pod uid: tells a pod from its successor of the same name."""
    address: str
    role: Role
    revision: str = ""
    profile_digest: str | None = None
    reachable: bool = False
    ejected: bool = False
    state: WorkerState | None = None
    state_age_seconds: float = 0.0
    inflight: int = 0
    errors_total: int = 0


class GatewayDemand(Document):
    """`GET /duet/demand` on a gateway's admin port: what its users asked for and got, summed over its processes."""

    gateway: str
    """Pod name."""
    started_at_seconds: float = 0.0
    generation: int = 0
    """`metadata.generation` of the live fields in force."""
    waiting_requests: int = 0
    waiting_tokens: int = 0
    inflight_requests: int = 0
    loop_lag_p99_seconds: float = 0.0
    """Over the last seconds."""
    loop_lag_seconds: Histogram | None = None
    """Since the start; one observation for each of the event loop's clock ticks."""
    saturated: bool = False
    classes: tuple[ClassDemand, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
    profiles: tuple[WorkerProfile, ...] = ()


# --- operator to gateway: the routing plan ---


class ClassPlan(Message):
    """Fluid targets of one class, over all workers and gateways (Gate-and-Route, section 3.2)."""

    name: str = "default"
    prefill_occupancy: float = 0.0
    """Prompts in prefill at any time."""
    mixed_occupancy: float = 0.0
    """Requests that decode beside a prefill."""
    solo_occupancy: float = 0.0
    """Requests that decode without one."""
    admitted_per_second: float = 0.0
    """Requests that can be served."""
    shed_per_second: float = 0.0
    """Requests that can't: what is over of them is told to come back."""


class RoutingPlan(Document):
    """`PUT /duet/plan` on a gateway's admin port. Past its lease a gateway computes its own."""

    generation: int = 0
    lease_seconds: float = Field(gt=0)
    saturated: bool = False
    """Demand exceeds capacity: the gate is on, and `classes` say who gets what."""
    dispatch_share: float = Field(default=1.0, ge=0, le=1)
    """This gateway's share of the window of work that prefill workers hold ahead."""
    deflected_share: float = Field(default=0.0, ge=0, le=1)
    classes: tuple[ClassPlan, ...] = ()


class PlanApplied(Document):
    """Answer of `PUT /duet/plan`."""

    generation: int
    lease_remaining_seconds: float


# --- engine: whom it believes ---


class Trust(Message):
    """Whom engines, or gateways, of one DuetDeployment believe: the file that `DUET_TRUST_FILE` names."""

    version: int = PROTOCOL_VERSION
    audience: str
    issuer: str
    keys: tuple[dict[str, Any], ...] = ()
    """The cluster's public keys as JSON Web Keys (RFC 7517)."""
    callers: tuple[str, ...] = ()
    """Subjects that may call, such as `system:serviceaccount:NAMESPACE:NAME`."""
    open_requests: bool = False
    """Without a gateway any router may send requests: only what changes an engine, and `/duet/*`, is guarded then."""


def token_audience(namespace: str, name: str) -> str:
    """Audience of tokens for the engines of one object: what one tenant's engine is shown opens no other's."""
    return f"{TOKEN_AUDIENCE}/{namespace}/{name}"


def gateway_audience(namespace: str, name: str) -> str:
    """Audience of tokens for the gateways of one object, so that its engines can't use those that they are shown."""
    return f"{GATEWAY_TOKEN_AUDIENCE}/{namespace}/{name}"


def openai_error(message: str, *, kind: str, code: int) -> dict[str, Any]:
    """An error body in the shape that OpenAI clients and SGLang share."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}
