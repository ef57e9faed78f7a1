"""A deflected request's answer: untouched, or a 503 with the worker's reason even where a stream had begun."""

from typing import Any

from duet_engine.plugin.deflection_intake import Arrival, HeldAnswer, Message
from duet_engine.protocol import Dispatch, Refusal, RefusalReason

REFUSAL = Refusal(reason=RefusalReason.NO_KV, message="no room", retry_after_seconds=2.0)
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PIECES: list[Message] = [
    {"type": "http.response.body", "body": b"first", "more_body": True},
    {"type": "http.response.body", "body": b"second"},
]


def held() -> tuple[Arrival, HeldAnswer, list[Any], list[RefusalReason]]:
    sent: list[Any] = []
    counted: list[RefusalReason] = []

    async def send(message: Message) -> None:
        sent.append(message)

    arrival = Arrival(Dispatch(gateway="g", sequence=4, deflected=True))
    return arrival, HeldAnswer(arrival, send, count=counted.append), sent, counted


async def test_an_answer_passes_as_it_is_and_its_head_with_the_first_piece() -> None:
    _, answer, sent, counted = held()
    await answer(START)
    assert sent == []
    for piece in PIECES:
        await answer(piece)
    assert sent == [START, *PIECES] and counted == []


async def test_a_refusal_takes_the_place_of_a_stream_that_had_begun() -> None:
    arrival, answer, sent, counted = held()
    await answer(START)
    arrival.refusal = REFUSAL
    for piece in PIECES:
        await answer(piece)
    head, body = sent
    headers = {name.decode(): value.decode() for name, value in head["headers"]}
    assert head["status"] == 503
    assert headers["x-duet-refused"] == "no-kv" and headers["retry-after"] == "2"
    assert Refusal.read(body["body"]) == REFUSAL
    assert counted == [RefusalReason.NO_KV]


async def test_a_refusal_after_the_first_piece_changes_nothing() -> None:
    arrival, answer, sent, counted = held()
    await answer(START)
    await answer(PIECES[0])
    arrival.refusal = REFUSAL
    await answer(PIECES[1])
    assert sent == [START, *PIECES] and counted == []
