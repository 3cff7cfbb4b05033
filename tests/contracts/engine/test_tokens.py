"""Tokens: what is counted, where an answer stops, and that an answer cut anywhere is continued by its token ids."""

from typing import Any

import httpx
import pytest

from tests.contracts.engine.shapes import frames

CHAT = "/v1/chat/completions"


def _chat(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}


async def _streamed(client: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT):
    """Prompt ids, answer ids and text of a stream."""
    options = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    seen = [frame.data for frame in frames((await client.post(path, json={**body, **options})).text)]
    assert seen[-1] == "[DONE]"
    choices = [frame["choices"][0] for frame in seen[:-1] if frame["choices"]]
    prompt = seen[0].get("prompt_token_ids") or choices[0].get("prompt_token_ids")
    tokens = [token for choice in choices for token in choice.get("token_ids") or ()]
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    usage = seen[-2]["usage"]
    assert usage["completion_tokens"] == len(tokens)
    assert usage["prompt_tokens"] == len(prompt)
    return prompt, tokens, text


@pytest.mark.parametrize("content", ["Hello there", "write a class that counts", "\u00e9t\u00e9 \u2713 12345"])
@pytest.mark.parametrize("cut", [1, 13, 39])
async def test_a_cut_stream_is_continued_exactly_by_token_ids(client, content: str, cut: int) -> None:
    length = {"max_tokens": 40, "ignore_eos": True}
    prompt, whole, _ = await _streamed(client, _chat(content, **length))
    assert len(whole) == 40
    rest = {"model": "tiny", "prompt": prompt + whole[:cut], "temperature": 0, "ignore_eos": True}
    _, tokens, _ = await _streamed(client, {**rest, "max_tokens": 40 - cut}, "/v1/completions")
    assert whole[:cut] + tokens == whole


async def test_the_prompt_of_a_chat_can_be_had_from_tokenize(client) -> None:
    prompt, _, _ = await _streamed(client, _chat("same template", max_tokens=1))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "same template"}]}
    tokenized = (await client.post("/tokenize", json=body)).json()
    assert tokenized["tokens"] == prompt
    assert tokenized["count"] == len(prompt)
    assert tokenized["max_model_len"] == 2048


async def test_tokenize_and_detokenize_are_inverse(client) -> None:
    text = "import os and sys, print 42 caf\u00e9"
    tokens = (await client.post("/tokenize", json={"model": "tiny", "prompt": text})).json()["tokens"]
    assert (await client.post("/detokenize", json={"model": "tiny", "tokens": tokens})).json() == {"prompt": text}


async def test_temperature_zero_repeats_itself(client) -> None:
    body = _chat("again", max_tokens=20, ignore_eos=True)
    first, second = await _streamed(client, body), await _streamed(client, body)
    assert first == second


async def test_a_seed_repeats_itself_and_another_one_does_not(client) -> None:
    texts = [
        (await _streamed(client, _chat("dice", max_tokens=20, ignore_eos=True) | {"temperature": 1.0, "seed": seed}))[2]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_a_stop_string_ends_the_answer_and_is_left_out(client) -> None:
    body = _chat("stop somewhere", max_tokens=30, ignore_eos=True)
    _, _, text = await _streamed(client, body)
    stop = text[len(text) // 2 :][:3]
    choice = (await client.post(CHAT, json={**body, "stop": [stop]})).json()["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    _, _, streamed = await _streamed(client, {**body, "stop": [stop]})
    assert streamed == text[: text.index(stop)]


async def test_several_choices(client) -> None:
    body = _chat("thrice", max_tokens=5, n=3, ignore_eos=True) | {"temperature": 1.0}
    reply = (await client.post(CHAT, json=body)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 15


async def test_a_chat_is_continued_in_its_last_message(client) -> None:
    messages = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "This is"}]
    template = {"continue_final_message": True, "add_generation_prompt": False}
    body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 5, **template}
    prompt, tokens, _ = await _streamed(client, {**body, "ignore_eos": True})
    text = (await client.post("/detokenize", json={"model": "tiny", "tokens": prompt})).json()["prompt"]
    assert text.endswith("assistant\nThis is")
    assert len(tokens) == 5
