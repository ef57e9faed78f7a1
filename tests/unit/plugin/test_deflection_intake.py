"""The door: the gateway's field is believed or refused, never passed on, and a refusal is a 503 whatever was begun."""

import json
from typing import Any

import pytest

from duet_engine.plugin.deflection_intake import ARRIVAL, DispatchIntake, Message, Receive, Send
from duet_engine.protocol import Dispatch, Refusal, RefusalReason

REFUSAL = Refusal(reason=RefusalReason.NO_KV, message="no room", retry_after_seconds=2.0)
DEFLECTED = {"gateway": "g", "sequence": 4, "deflected": True}


class Engine:
    """Stands for SGLang: remembers the body, answers in two pieces."""

    def __init__(self, *, refuses: bool = False, raises: bool = False) -> None:
        self.body: dict[str, Any] | None = None
        self.dispatch: Dispatch | None = None
        self.refuses, self.raises = refuses, raises

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = await receive()
        headers = dict(scope["headers"])
        assert int(headers[b"content-length"]) == len(message["body"])
        self.body = json.loads(message["body"])
        arrival = ARRIVAL.get()
        self.dispatch = None if arrival is None else arrival.dispatch
        if not self.raises:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.refuses:
            assert arrival is not None
            arrival.refusal = REFUSAL
        if self.raises:
            raise ValueError("as SGLang's handlers do")
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await send({"type": "http.response.body", "body": b"second"})


async def call(
    engine: Engine, body: dict[str, Any], *, proven: bool = True, pieces: int = 1, path: str = "/generate"
) -> tuple[int, dict[str, str], bytes, list[Dispatch]]:
    """Status, headers, body, and the dispatches that were noted."""
    raw, sent, noted = json.dumps(body).encode(), [], []
    size = -(-len(raw) // pieces)
    parts = [raw[start : start + size] for start in range(0, len(raw), size)]

    async def receive() -> Message:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-length", str(len(raw)).encode()), (b"authorization", b"Bearer t")]
    intake = DispatchIntake(engine, proven=lambda given: proven and given == "Bearer t", dispatched=noted.append)
    await intake({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(part["body"] for part in sent[1:]), noted


@pytest.mark.parametrize("pieces", [1, 7])
async def test_the_field_is_taken_out_and_known_to_the_requests_task(pieces: int) -> None:
    engine = Engine()
    status, _, body, noted = await call(engine, {"text": "ü", "duet": DEFLECTED}, pieces=pieces)
    assert (status, body) == (200, b"firstsecond")
    assert engine.body == {"text": "ü"}
    assert engine.dispatch is not None and engine.dispatch.deflected and noted == [engine.dispatch]
    assert ARRIVAL.get() is None


async def test_a_request_without_the_field_passes_untouched() -> None:
    engine = Engine()
    assert (await call(engine, {"text": "a"}))[0] == 200
    assert engine.body == {"text": "a"} and engine.dispatch is None


async def test_who_cant_prove_to_be_a_gateway_may_not_send_the_field() -> None:
    engine = Engine()
    status, _, body, noted = await call(engine, {"text": "a", "duet": DEFLECTED}, proven=False)
    assert status == 403 and b"only a gateway" in body
    assert engine.body is None and not noted


async def test_a_field_that_cant_be_read_is_named() -> None:
    status, _, body, _ = await call(Engine(), {"text": "a", "duet": {"gateway": "g"}})
    assert status == 400 and b"duet.sequence" in body


async def test_nobody_may_pose_as_sglangs_health_check() -> None:
    """With this host a decode worker generates from KV that nobody has filled."""
    status, _, body, _ = await call(Engine(), {"text": "a", "bootstrap_host": "2.2.2.2", "bootstrap_room": 1})
    assert status == 400 and b"bootstrap_host" in body


@pytest.mark.parametrize("raises", [False, True])
async def test_a_refusal_is_a_503_with_its_reason_though_a_stream_had_begun(raises: bool) -> None:
    status, headers, body, _ = await call(
        Engine(refuses=True, raises=raises), {"text": "a", "stream": True, "duet": DEFLECTED}
    )
    assert status == 503
    assert headers["x-duet-refused"] == "no-kv" and headers["retry-after"] == "2"
    assert Refusal.read(body) == REFUSAL


async def test_an_error_that_is_no_refusal_stays_one() -> None:
    with pytest.raises(ValueError, match="as SGLang's handlers do"):
        await call(Engine(raises=True), {"text": "a", "duet": DEFLECTED})


async def test_a_dispatch_by_way_of_a_prefill_worker_is_held_back_by_nothing() -> None:
    engine = Engine()
    status, _, _, noted = await call(engine, {"text": "a", "duet": {"gateway": "g", "sequence": 5}})
    assert status == 200 and engine.body == {"text": "a"} and not noted[0].deflected
