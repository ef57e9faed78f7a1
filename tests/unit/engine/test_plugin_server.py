"""The plugin in the server process, before a SGLang that only notes what it gets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from duet_engine.plugin.asgi import DuetApplication, Message, Receive, RefusedError, Request, Scope, Send
from duet_engine.plugin.board import Numbers, pin_card
from duet_engine.plugin.endpoints import DuetEndpoints
from duet_engine.plugin.facts import FACT_NAMES, STEP_KINDS, SchedulerFacts
from duet_engine.plugin.health import STUCK_SECONDS
from duet_engine.plugin.hooks import HookTable
from duet_engine.plugin.metrics import DuetCollector
from duet_engine.plugin.server_side import ServerSide
from duet_engine.plugin.settings import EngineSettings
from duet_engine.protocol import (
    REFUSAL_HEADER,
    DrainPhase,
    DrainStatus,
    HookStatus,
    Knobs,
    ProcessInfo,
    Refusal,
    RefusalReason,
    Role,
    StepKind,
    WorkerInfo,
    WorkerState,
)

WORKER = "decode-0"


class Sglang:
    """SGLang's application and its state."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.answer = 200, b"answer"
        self.told: list[Any] = []
        self.release = asyncio.Event()
        self.release.set()
        arguments = SimpleNamespace(
            host="127.0.0.1", port=1, tp_size=1, pp_size=1, disaggregation_bootstrap_port=8998,
            served_model_name=None, model_path="meta-llama/Llama-3.1-8B",
        )  # fmt: skip
        self.tokenizer_manager = SimpleNamespace(
            server_args=arguments,
            server_status=SimpleNamespace(value="Up"),
            gracefully_exit=False,
            is_ready=lambda: True,
            tokenizer=SimpleNamespace(name_or_path=""),
            set_internal_state=self._set_internal_state,
        )

    async def _set_internal_state(self, request: Any) -> list[bool]:
        self.told.append(request.server_args)
        return [True]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        self.bodies.append(message.get("body", b""))
        await self.release.wait()
        status, body = self.answer
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Worker:
    """A decode worker whose scheduler is this test."""

    def __init__(self, board: Path, environment: dict[str, str], modules: list[Any] | None = None) -> None:
        settings = EngineSettings.read({"DUET_ROLE": "decode", "POD_NAME": WORKER, **environment})
        self.board, self.sglang = board, Sglang()
        self.side = ServerSide(settings, board, HookTable(), sglang_version="0.5.23")
        self.facts = SchedulerFacts(role=float(list(Role).index(Role.DECODE)), kv_capacity_tokens=1000)
        self._numbers = Numbers(board / "scheduler-0.numbers", FACT_NAMES, create=True)
        self.says()
        self.pin(HookStatus(target="a.b", active=True))
        pin_card(board, ProcessInfo(name="detokenizer"))
        self.side.started(self.sglang)
        endpoints = DuetEndpoints(self.side).routes()
        self.app = DuetApplication(self.sglang, side=self.side, endpoints=endpoints, modules=modules or [])

    def says(self, **facts: float) -> None:
        """What the scheduler writes next."""
        for name, value in facts.items():
            setattr(self.facts, name, value)
        self._numbers.write(self.facts.values())

    def pin(self, *hooks: HookStatus) -> None:
        pin_card(self.board, ProcessInfo(name="scheduler", hooks=hooks))

    async def call(
        self, method: str, path: str, body: bytes = b"", *, headers: dict[str, str] | None = None, query: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one call from another machine."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        lines = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope: Scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": lines,
            "client": ("10.0.0.9", 4), "server": ("10.0.0.1", 30000),
        }  # fmt: skip
        await self.app(scope, receive, send)
        names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], names, b"".join(message.get("body", b"") for message in sent[1:])

    async def ready(self) -> tuple[int, str | None]:
        status, _, body = await self.call("GET", "/duet/ready")
        return status, json.loads(body)["reason"]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    yield Worker(tmp_path, {})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens by itself."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def drain(**fields: Any) -> bytes:
    return json.dumps({"lease_seconds": 60, "requested_by": "operator", "reason": "fewer", **fields}).encode()


async def test_other_paths_pass_untouched(worker: Worker) -> None:
    assert (await worker.call("GET", "/v1/models"))[2] == b"answer"
    assert (await worker.call("POST", "/generate", b'{"text": "a"}'))[2] == b"answer"
    assert worker.sglang.bodies == [b"", b'{"text": "a"}']


async def test_our_field_is_read_and_taken_out(worker: Worker) -> None:
    body = {"text": "a", "duet": {"gateway": "g1", "sequence": 7}}
    await worker.call("POST", "/v1/completions", json.dumps(body).encode(), headers={"content-length": "999"})
    assert json.loads(worker.sglang.bodies[0]) == {"text": "a"}
    await asyncio.sleep(0.02)
    assert worker.side.state().accepted == {"g1": 7}


async def test_a_bad_field_of_ours_is_refused_by_name(worker: Worker) -> None:
    status, _, answer = await worker.call("POST", "/generate", b'{"text": "a", "duet": {"gateway": "g1"}}')
    assert status == 400
    assert b"sequence" in answer
    assert worker.sglang.bodies == []


async def test_nobody_may_claim_that_kv_needs_no_prefill(worker: Worker) -> None:
    body = json.dumps({"input_ids": [1], "bootstrap_host": "2.2.2.2", "bootstrap_room": 1}).encode()
    status, _, answer = await worker.call("POST", "/generate", body)
    assert status == 400
    assert b"bootstrap_host" in answer
    assert worker.sglang.bodies == []


async def test_a_draining_worker_refuses_and_serves_again(worker: Worker) -> None:
    assert (await worker.call("PUT", "/duet/drain", drain(worker=WORKER)))[0] == 200
    status, headers, answer = await worker.call("POST", "/generate", b"{}")
    assert (status, headers[REFUSAL_HEADER], headers["retry-after"]) == (503, "draining", "1")
    assert Refusal.read(answer).reason is RefusalReason.DRAINING
    code, reason = await worker.ready()
    assert (code, reason) == (503, "draining, asked for by operator: fewer")
    assert worker.side.state().draining
    await worker.call("DELETE", "/duet/drain")
    assert (await worker.call("POST", "/generate", b"{}"))[0] == 200
    assert (await worker.ready())[0] == 200
    assert worker.side.refusals == {RefusalReason.DRAINING: 1}


async def test_a_drain_for_another_worker_is_refused(worker: Worker) -> None:
    status, _, answer = await worker.call("PUT", "/duet/drain", drain(worker="decode-1"))
    assert status == 409
    assert WORKER.encode() in answer
    assert (await worker.ready())[0] == 200


async def test_a_lease_that_isnt_renewed_ends_the_drain(worker: Worker) -> None:
    await worker.call("PUT", "/duet/drain", drain(lease_seconds=0.05))
    await asyncio.sleep(0.06)
    assert (await worker.ready())[0] == 200


async def test_a_drain_counts_every_place_that_work_can_be_in(worker: Worker) -> None:
    places = ("running", "queued", "deflected", "prefill_bootstrap", "prefill_inflight", "decode_prealloc")
    for place in (*places, "decode_transfer"):
        worker.says(**dict.fromkeys((*places, "decode_transfer"), 0.0) | {place: 1.0})
        status = DrainStatus.read((await worker.call("PUT", "/duet/drain", drain()))[2])
        assert status.phase is DrainPhase.DRAINING, place
        assert getattr(status.remaining, place) == 1
    worker.says(decode_transfer=0.0)
    assert DrainStatus.read((await worker.call("GET", "/duet/drain"))[2]).phase is DrainPhase.DRAINED


async def test_idleness_counts_from_when_it_began_not_from_when_somebody_asked(worker: Worker) -> None:
    worker.side.state()
    await asyncio.sleep(0.05)
    assert DrainStatus.read((await worker.call("GET", "/duet/drain"))[2]).idle_seconds >= 0.04
    asked_at = time.monotonic()
    await worker.call("POST", "/generate", b"{}")
    status = DrainStatus.read((await worker.call("PUT", "/duet/drain", drain()))[2])
    assert status.idle_seconds <= time.monotonic() - asked_at, "it was idle before that request too"


async def test_a_request_that_no_scheduler_knows_of_counts_too(worker: Worker) -> None:
    """It is in the tokenizer, or its answer is on its way out."""
    worker.sglang.release.clear()
    asked = asyncio.create_task(worker.call("POST", "/generate", b"{}"))
    await until(lambda: bool(worker.sglang.bodies))
    await worker.call("PUT", "/duet/drain", drain())
    status = DrainStatus.read((await worker.call("GET", "/duet/drain"))[2])
    assert (status.phase, status.remaining.total) == (DrainPhase.DRAINING, 1)
    worker.sglang.release.set()
    assert (await asked)[0] == 200
    assert DrainStatus.read((await worker.call("GET", "/duet/drain"))[2]).phase is DrainPhase.DRAINED


async def test_a_process_that_is_told_to_end_takes_nothing_more(worker: Worker) -> None:
    worker.sglang.tokenizer_manager.gracefully_exit = True
    worker.side.drain.terminate()
    assert (await worker.call("POST", "/generate", b"{}"))[0] == 503
    await worker.call("DELETE", "/duet/drain")
    assert DrainStatus.read((await worker.call("GET", "/duet/drain"))[2]).phase is DrainPhase.TERMINATING
    assert await worker.ready() == (503, "terminating")


async def test_a_worker_is_unready_without_the_plugin_everywhere(worker: Worker) -> None:
    assert await worker.ready() == (200, None)
    worker.pin(HookStatus(target="sglang.srt.x", active=False, reason="its source is another"))
    status, reason = await worker.ready()
    assert (status, reason) == (503, "Duet's plugin isn't active: scheduler 0: sglang.srt.x: its source is another")
    info = WorkerInfo.read((await worker.call("GET", "/duet/info"))[2])
    assert not info.plugin_active
    assert not worker.side.state().ready, "gateways would send it requests"
    assert info.inactive_reason is not None
    (worker.board / "scheduler-0.card").unlink()
    assert "no word from scheduler 0" in str((await worker.ready())[1])


async def test_info_says_who_it_is(worker: Worker) -> None:
    info = WorkerInfo.read((await worker.call("GET", "/duet/info"))[2])
    assert (info.worker, info.role, info.engine_name, info.engine_version) == (WORKER, Role.DECODE, "sglang", "0.5.23")
    assert [(process.name, process.rank) for process in info.processes] == [
        ("server", 0), ("detokenizer", 0), ("scheduler", 0),
    ]  # fmt: skip
    assert (info.plugin_active, info.profile.kv_capacity_tokens, info.profile.basis) == (True, 1000, "assumed")


async def test_a_step_that_never_ends_is_not_live(worker: Worker) -> None:
    moment = time.monotonic()
    worker.says(step_kind=float(STEP_KINDS.index(StepKind.DECODE)), step_started_at=moment)
    assert (await worker.call("GET", "/duet/live"))[0] == 200
    worker.says(step_started_at=moment - STUCK_SECONDS - 1)
    assert (await worker.call("GET", "/duet/live"))[0] == 503
    worker.says(paused=1.0)
    assert (await worker.call("GET", "/duet/live"))[0] == 200


async def test_waiting_for_a_peer_is_live_and_waiting_for_oneself_is_not(worker: Worker) -> None:
    long_ago = time.monotonic() - STUCK_SECONDS - 1
    worker.says(decode_prealloc=3.0, decode_transfer=2.0, last_step_ended_at=long_ago)
    assert (await worker.call("GET", "/duet/live"))[0] == 200
    worker.says(queued=1.0, runnable_since=long_ago)
    assert (await worker.call("GET", "/duet/live"))[0] == 503


async def test_the_state_is_what_the_scheduler_wrote_and_small(worker: Worker) -> None:
    worker.says(
        running=60.0, decode_requests=60.0, decode_context_tokens=120_000.0, kv_used_tokens=500.0,
        headroom_tokens_per_second=1234.5, deflection_active=1.0, prefill_tokens_total=1e9,
    )  # fmt: skip
    for gateway in range(8):
        body = json.dumps({"duet": {"gateway": f"{gateway:032x}", "sequence": 10**6}}).encode()
        await worker.call("POST", "/generate", body)
    await asyncio.sleep(0.02)
    _, _, content = await worker.call("GET", "/duet/state")
    assert len(content) <= 2048
    state = WorkerState.read(content)
    assert (state.work.running, state.decode_context_tokens, state.headroom_tokens_per_second) == (60, 120_000, 1234.5)
    assert state.deflection_active
    assert len(state.accepted) == 8


@pytest.mark.parametrize("ends", ["reader", "server"])
async def test_the_stream_tells_a_change_and_goes_on_until_somebody_ends(worker: Worker, ends: str) -> None:
    gone = asyncio.Event()
    lines: list[bytes] = []

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        lines.extend(part for part in message.get("body", b"").splitlines())

    scope: Scope = {
        "type": "http", "method": "GET", "path": "/duet/state", "query_string": b"stream=1", "headers": [],
        "client": None, "server": None,
    }  # fmt: skip
    reading = asyncio.create_task(worker.app(scope, receive, send))
    await until(lambda: bool(lines))
    worker.says(running=5.0, decode_requests=5.0)
    await until(lambda: WorkerState.read(lines[-1]).work.running == 5)
    seen = len(lines)
    await until(lambda: len(lines) >= seen + 2)
    if ends == "reader":
        gone.set()
    else:
        worker.side.closing = True
    await asyncio.wait_for(reading, 5)
    sequences = [WorkerState.read(line).sequence for line in lines]
    assert sequences == sorted(set(sequences))


async def test_knobs_reach_the_schedulers_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Knobs] = []

    async def tell(knobs: Knobs) -> None:
        told.append(knobs)

    monkeypatch.setattr(ServerSide, "tell_schedulers", lambda _, knobs: tell(knobs))
    wanted = Knobs(generation=3, itl_milliseconds=40).model_dump_json().encode()
    answers = [json.loads((await worker.call("PUT", "/duet/knobs", wanted))[2])["changed"] for _ in range(2)]
    assert answers == [True, False]
    assert [knobs.itl_milliseconds for knobs in told] == [40]
    older = Knobs(generation=2, itl_milliseconds=90).model_dump_json().encode()
    await worker.call("PUT", "/duet/knobs", older)
    assert Knobs.read((await worker.call("GET", "/duet/knobs"))[2]).itl_milliseconds == 40


@pytest.mark.parametrize(
    "bad", [{"itl_milliseconds": 0}, {"itl": 40}, {"chunk_candidates_tokens": []}, {"generation": -1}]
)
async def test_bad_knobs_change_nothing(worker: Worker, bad: dict[str, Any]) -> None:
    document = {"generation": 1, "itl_milliseconds": 40} | bad
    status, _, answer = await worker.call("PUT", "/duet/knobs", json.dumps(document).encode())
    assert status == 400
    assert next(iter(bad)).encode() in answer
    assert worker.side.knobs.generation == 0


async def test_callers_must_prove_who_they_are(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    worker = Worker(tmp_path, {"DUET_SHARED_TOKEN_FILE": str(token)})
    for method, path in (("POST", "/generate"), ("GET", "/duet/state"), ("PUT", "/duet/knobs"), ("GET", "/v1/models")):
        assert (await worker.call(method, path, b"{}"))[0] == 401, path
    assert worker.sglang.bodies == []
    for path in ("/duet/ready", "/duet/live", "/metrics"):
        assert (await worker.call("GET", path))[0] == 200, path
    proof = {"authorization": "Bearer secret"}
    assert (await worker.call("POST", "/generate", b"{}", headers=proof))[0] == 200


async def test_only_a_gateway_sends_our_field_even_where_requests_are_open_to_all(tmp_path: Path) -> None:
    trust, shared = tmp_path / "trust.json", tmp_path / "token"
    trust.write_text('{"audience": "duet-engine/a/b", "issuer": "cluster", "open_requests": true}')
    shared.write_text("secret")
    worker = Worker(tmp_path, {"DUET_TRUST_FILE": str(trust), "DUET_SHARED_TOKEN_FILE": str(shared)})
    ours = b'{"text": "a", "duet": {"gateway": "g", "sequence": 1, "deflected": true}}'
    assert (await worker.call("POST", "/generate", b'{"text": "a"}'))[0] == 200
    assert (await worker.call("POST", "/generate", ours))[0] == 401
    assert (await worker.call("POST", "/generate", ours, headers={"authorization": "Bearer secret"}))[0] == 200
    assert worker.sglang.bodies == [b'{"text": "a"}', b'{"text": "a"}']


async def test_sglangs_own_warm_up_is_let_in_until_it_ends(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    worker = Worker(tmp_path, {"DUET_SHARED_TOKEN_FILE": str(token)})
    worker.sglang.tokenizer_manager.server_status.value = "Starting"
    body = b'{"bootstrap_host": "2.2.2.2"}'
    own = worker.side.warm_up.begin()
    proof = {"authorization": "Bearer secret"}
    assert (await worker.call("POST", "/generate", body, headers=own))[0] == 200
    assert (await worker.call("POST", "/generate", body))[0] == 401
    assert (await worker.call("POST", "/generate", body, headers=dict.fromkeys(own, "x")))[0] == 401
    assert (await worker.call("PUT", "/duet/knobs", b"{}", headers=own))[0] == 401, "good for nothing else"
    assert (await worker.call("POST", "/generate", b"{}", headers=proof))[1][REFUSAL_HEADER] == "not-ready"
    worker.side.warm_up.end()
    assert (await worker.call("POST", "/generate", body, headers=own))[0] == 401
    assert await worker.ready() == (503, "starting")


async def test_a_module_may_refuse_a_request(tmp_path: Path) -> None:
    async def full(request: Request) -> None:
        if request.dispatch is not None and request.dispatch.deflected:
            raise RefusedError(Refusal(reason=RefusalReason.NO_KV, message="full"))

    worker = Worker(tmp_path, {}, [full])
    body = json.dumps({"duet": {"gateway": "g", "sequence": 1, "deflected": True}}).encode()
    status, headers, _ = await worker.call("POST", "/generate", body)
    assert (status, headers[REFUSAL_HEADER]) == (503, "no-kv")
    assert worker.side.active_requests == 0
    assert worker.side.refusals == {RefusalReason.NO_KV: 1}


async def test_only_a_drained_worker_switches_its_role(worker: Worker) -> None:
    assert (await worker.call("POST", "/pd_role_switch", b"{}"))[0] == 409
    worker.says(running=1.0)
    await worker.call("PUT", "/duet/drain", drain())
    assert (await worker.call("POST", "/pd_role_switch", b"{}"))[0] == 409
    assert worker.sglang.bodies == []
    worker.says(running=0.0)
    assert (await worker.call("POST", "/pd_role_switch", b"{}"))[0] == 200
    worker.says(role=float(list(Role).index(Role.PREFILL)))
    assert worker.side.state().role is Role.PREFILL


@pytest.mark.parametrize(
    ("answer", "live"),
    [
        ({"success": False, "safe_to_restore": True}, 200),
        ({"success": False, "safe_to_restore": False}, 503),
        ({"object": "error", "message": "new_role: prefill or decode"}, 200),
        ({"error": {"message": "no answer from a scheduler"}}, 503),
    ],
    ids=["refused", "half-way", "never read", "no answer"],
)
async def test_a_role_switch_that_failed_half_way_asks_for_a_restart(
    worker: Worker, answer: dict[str, Any], live: int
) -> None:
    worker.sglang.answer = 400, json.dumps(answer).encode()
    await worker.call("PUT", "/duet/drain", drain())
    assert (await worker.call("POST", "/pd_role_switch", b"{}"))[0] == 400
    await worker.call("DELETE", "/duet/drain")
    assert (await worker.call("GET", "/duet/live"))[0] == live
    assert (await worker.ready())[0] == live


async def test_series_in_the_metrics(worker: Worker) -> None:
    worker.says(decode_steps_total=12.0, decode_seconds_total=0.5, chunks_total=3.0, busy_seconds_total=0.75)
    registry = CollectorRegistry()
    registry.register(DuetCollector(worker.side))
    text = generate_latest(registry).decode()
    for line in (
        'duet_engine_steps_total{kind="decode",rank="0"} 12.0',
        'duet_engine_step_seconds_total{kind="decode",rank="0"} 0.5',
        'duet_engine_prefill_chunks_total{rank="0"} 3.0',
        'duet_engine_refusals_total{reason="no-kv"} 0.0',
        "duet_engine_plugin_active 1.0",
    ):
        assert line in text.splitlines(), line
