"""Clients that people use, unmodified, through the gateway."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import openai
import pytest
from tests.support.fleet import MODEL, GatewayProcess, all_usable, fleet


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with fleet(tmp_path_factory.mktemp("clients")) as started:
        yield started.gateway([started.engine("prefill"), started.engine("decode")])


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with aiohttp.ClientSession() as session:
        await all_usable(session, gateway, 2)
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


MESSAGES = [{"role": "user", "content": "tell me"}]


async def test_openai_lists_models_and_completes(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    completion = await client.completions.create(model=MODEL, prompt="once", max_tokens=5, extra_body=IGNORE_END)
    assert completion.usage is not None and completion.usage.completion_tokens == 5
    assert completion.choices[0].finish_reason == "length" and completion.choices[0].text


async def test_openai_streams_a_chat_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,  # type: ignore[arg-type]
        max_completion_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=IGNORE_END,
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 7


async def test_openai_sees_errors_as_its_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="isn't served here"):
        await client.completions.create(model="other", prompt="once")
    with pytest.raises(openai.BadRequestError, match="only 1 is supported"):
        await client.completions.create(model=MODEL, prompt="once", n=3)
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        await client.embeddings.create(model=MODEL, input="once")


async def test_openai_leaves_in_the_middle(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model=MODEL, prompt="once", max_tokens=5000, stream=True, extra_body=IGNORE_END
    )
    async for _ in stream:
        break
    await stream.close()
    again = await client.completions.create(model=MODEL, prompt="once", max_tokens=2, extra_body=IGNORE_END)
    assert again.choices[0].text


IGNORE_END = {"ignore_eos": True}
