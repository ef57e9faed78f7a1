"""The HTTP process: who bears the mark, what is refused before the scheduler hears of it, and what comes back."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from duet_engine.plugin.deflection_intake import ARRIVAL, Arrival, watcher
from duet_engine.plugin.deflection_request import MARK
from duet_engine.plugin.deflection_support import REQUEST_TESTS, lacks
from duet_engine.plugin.deflection_tokenizer import NotDeflectable, aborted, several, tokenized
from duet_engine.protocol import Dispatch, Refusal, RefusalReason, Role

DISPATCH = Dispatch(gateway="g", sequence=1, deflected=True, chunk_schedule_tokens=(64,))
REFUSAL = Refusal(reason=RefusalReason.NO_KV, message="full")


@pytest.fixture
def arrival() -> Iterator[Arrival]:
    """This task serves a deflected request."""
    here = Arrival(DISPATCH)
    token = ARRIVAL.set(here)
    yield here
    ARRIVAL.reset(token)


def graphs(prefill: str, decode: str) -> Any:
    """SGLang's configuration of CUDA graphs."""
    return SimpleNamespace(prefill=SimpleNamespace(backend=prefill), decode=SimpleNamespace(backend=decode))


def request(**fields: Any) -> Any:
    """What SGLang makes of a body, as far as it concerns us."""
    sampling = SimpleNamespace(
        custom_params=fields.pop("custom_params", None), beam_width=fields.pop("beam_width", None)
    )
    names = (
        *("mm_inputs", "input_embeds", "positional_embed_overrides", "lora_id", "session_id", "session_params"),
        *("custom_logit_processor", "return_hidden_states", "return_routed_experts", "return_indexer_topk"),
        *("return_sampling_mask", "token_indices_to_pool", "return_logprob"),
    )
    plain = dict.fromkeys(names) | {"bootstrap_host": "10.0.0.1", "bootstrap_room": 7, "sampling_params": sampling}
    plain["logprob_start_len"] = -1
    return SimpleNamespace(**(plain | fields))


def test_a_deflected_request_bears_the_mark_and_needs_no_room(arrival: Arrival) -> None:
    result = tokenized(request(custom_params={"thinking_budget": 3}), None)
    assert result.sampling_params.custom_params == {"thinking_budget": 3, MARK: [-1, 64]}
    assert (result.bootstrap_host, result.bootstrap_room) == (None, 0)


def test_a_mark_that_a_client_set_is_taken_off() -> None:
    result = tokenized(request(custom_params={MARK: [-1]}), None)
    assert result.sampling_params.custom_params is None
    assert (result.bootstrap_host, result.bootstrap_room) == ("10.0.0.1", 7)


UNSUPPORTED = {
    "multimodal input": {"mm_inputs": object()},
    "input_embeds": {"input_embeds": [[0.5]]},
    "embedding overrides": {"positional_embed_overrides": object()},
    "prompt logprobs": {"return_logprob": True, "logprob_start_len": 0},
    "lora_path": {"lora_id": "a"},
    "sessions": {"session_id": "s"},
    "custom_logit_processor": {"custom_logit_processor": "code"},
    "beam search": {"beam_width": 4},
    "return_hidden_states": {"return_hidden_states": True},
    "return_routed_experts": {"return_routed_experts": True},
    "return_indexer_topk": {"return_indexer_topk": True},
    "return_sampling_mask": {"return_sampling_mask": True},
    "pooling": {"token_indices_to_pool": [1]},
}


@pytest.mark.parametrize("name", REQUEST_TESTS)
def test_what_cant_be_deflected_is_refused_by_name(arrival: Arrival, name: str) -> None:
    with pytest.raises(NotDeflectable, match=name):
        tokenized(request(**UNSUPPORTED[name]), None)
    assert arrival.refusal is not None and arrival.refusal.reason is RefusalReason.UNSUPPORTED


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"enable_mixed_chunk": False}, "--enable-mixed-chunk"),
        ({"disable_radix_cache": True}, "--disaggregation-decode-enable-radix-cache"),
        ({"chunked_prefill_size": 8192}, "--chunked-prefill-size 2048"),
        ({"cuda_graph_config": graphs("disabled", "full")}, "--cuda-graph-backend-prefill breakable"),
    ],
)
def test_what_a_decode_mode_server_lacks_is_named_with_the_way_to_get_it(change: dict[str, Any], named: str) -> None:
    whole = {"enable_mixed_chunk": True, "disable_radix_cache": False, "chunked_prefill_size": 2048, "device": "cuda"}
    whole["cuda_graph_config"] = graphs("breakable", "full")
    assert lacks(SimpleNamespace(**whole, max_running_requests=None)) == []
    assert [named in each for each in lacks(SimpleNamespace(**(whole | change), max_running_requests=256))] == [True]
    assert lacks(SimpleNamespace(**(whole | {"chunked_prefill_size": 4096}), max_running_requests=4096)) == []
    without_any = whole | {"cuda_graph_config": graphs("disabled", "disabled")}
    assert lacks(SimpleNamespace(**without_any, max_running_requests=None)) == []


def test_several_answers_are_refused_and_only_where_they_were_deflected(arrival: Arrival) -> None:
    with pytest.raises(NotDeflectable, match="several prompts"):
        several()
    ARRIVAL.set(None)
    several()


@pytest.mark.parametrize(
    ("reason", "noted"),
    [
        ({"type": "abort", "status_code": 503, "message": REFUSAL.write().decode()}, REFUSAL),
        ({"type": "abort", "status_code": 503, "message": "Retracted under memory pressure"}, None),
        ({"type": "abort", "status_code": 400, "message": REFUSAL.write().decode()}, None),
        ({"type": "stop"}, None),
        (None, None),
    ],
)
def test_a_schedulers_refusal_is_noted_and_no_other_end(
    arrival: Arrival, reason: dict[str, Any] | None, noted: Refusal | None
) -> None:
    answer = aborted(lambda *_: "as before", None, {"meta_info": {"finish_reason": reason}}, None, True)
    assert answer == "as before"
    assert arrival.refusal == noted


async def test_only_a_decode_worker_takes_deflected_requests() -> None:
    from duet_engine.plugin.asgi import RefusedError, Request

    counted: list[RefusalReason] = []
    deflected = Request("/generate", {}, DISPATCH)
    with pytest.raises(RefusedError) as caught:
        await watcher(lambda: Role.PREFILL, count=counted.append)(deflected)
    assert caught.value.refusal.reason is RefusalReason.WRONG_ROLE
    await watcher(lambda: Role.DECODE, count=counted.append)(deflected)
    known = ARRIVAL.get()
    assert known is not None and known.dispatch is DISPATCH and deflected.respond_through is not None
    await watcher(lambda: Role.DECODE, count=counted.append)(Request("/generate", {}, None))
    assert ARRIVAL.get() is None
