"""A stream whose engine fails after the first byte goes on from another replica: the client sees one uncut stream."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nebula_proxy.traffic.plane import Limits
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import ScriptedEngine
from tests.support.token_engine import PROMPT, TokenEngine

#: Two bytes a character, so that every second token ends inside one; some tokens hold a character and a half.
ANSWER = [
    b"The",
    b" caf",
    b"\xc3",
    b"\xa9",
    b" is",
    b" \xe2",
    b"\x82\xac",
    b"5",
    b".",
    b" Then",
    b" \xf0\x9d",
    b"\x84",
    b"\x9e",
    b" end",
]
TEXT = b"".join(ANSWER).decode()
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "temperature": 0,
}


@contextlib.asynccontextmanager
async def pair(
    first: TokenEngine, second: TokenEngine, *, hot: bool = True, limits: Limits | None = None, **changes: Any
) -> AsyncIterator[RunningPlane]:
    """The first request goes to `first`, whatever follows to `second`."""
    resumable = {"resume": True, "engine": "vllm"} | changes
    async with (
        ScriptedEngine(first) as one,
        ScriptedEngine(second) as two,
        running_plane(
            model(endpoint("m-r0", one.port, **resumable), endpoint("m-r1", two.port, **resumable)),
            hot_path=hot,
            limits=limits,
        ) as running,
    ):
        running.engines = (one, two)
        yield running


def anew(running: RunningPlane) -> None:
    """Nothing is held against an engine, and the next request goes to the first one."""
    running.plane.ejections.clear("m-r0")
    running.plane.turns = itertools.count()


async def ask(running: RunningPlane, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> bytes:
    async with running.client() as client:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await client.post(path, json=body, headers=names)
        assert response.status_code == 200, response.text
        return response.content


def chunks(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(each[6:]) for each in stream.split(b"\n\n") if each.startswith(b"data: {")]


def text_of(stream: bytes) -> str:
    choices = [each["choices"][0] for each in chunks(stream) if each["choices"]]
    return "".join((each["delta"].get("content") if "delta" in each else each["text"]) or "" for each in choices)


async def uncut(body: dict[str, Any], path: str = "/v1/chat/completions", groups: tuple[int, ...] = (1,)) -> bytes:
    """What the same client gets when nothing is asked for and nothing fails."""
    engine = TokenEngine(ANSWER, groups)
    async with pair(engine, engine, resume=False) as running:
        stream = await ask(running, body, path)
    assert all("return_token_ids" not in each for each in engine.asked)
    return stream


def same(one: bytes, other: bytes) -> None:
    """Chunk by chunk, but for ids and where the text is cut into chunks."""
    ours, theirs = chunks(one), chunks(other)
    assert text_of(one) == text_of(other)
    assert len({each["id"] for each in ours}) == 1
    assert {each["created"] for each in ours} == {each["created"] for each in theirs}
    assert {each["object"] for each in ours} == {each["object"] for each in theirs}
    # The fingerprint of an engine comes with its last chunk, which nobody has seen when it dies before.
    last, expected = (each[-1] | {"id": "", "system_fingerprint": ""} for each in (ours, theirs))
    assert last == expected
    finishes = [
        [c["finish_reason"] for each in side for c in each["choices"] if c["finish_reason"]] for side in (ours, theirs)
    ]
    assert finishes[0] == finishes[1]
    roles = [[c for each in side for c in each["choices"] if "role" in c.get("delta", ())] for side in (ours, theirs)]
    assert roles[0] == roles[1]
    keys = [{tuple(sorted({*each, "system_fingerprint"})) for each in side} for side in (ours, theirs)]
    assert keys[0] <= keys[1]
    assert one.endswith(b"data: [DONE]\n\n")
    assert one.count(b"[DONE]") == 1
    assert b'"token_ids":[' not in one
    assert b'"prompt_token_ids":[' not in one


@pytest.mark.parametrize("way", ["close", "reset", "half", "error", "abort", "unfinished"])
async def test_every_way_to_fail_is_mended(hot: bool, way: str) -> None:
    expected = await uncut(CHAT)
    first, second = TokenEngine(ANSWER, cut=5, way=way), TokenEngine(ANSWER)
    async with pair(first, second, hot=hot) as running:
        same(await ask(running, CHAT), expected)
        meter = running.plane.meters.of(MODEL)
        assert meter.retries == {"resumed": 1}
        assert meter.completion_tokens == len(ANSWER) + 1
        assert meter.prompt_tokens == len(PROMPT)
    assert second.asked[0]["prompt"][: len(PROMPT)] == PROMPT
    assert second.asked[0]["path"] == "/v1/completions"
    assert "messages" not in second.asked[0]


@pytest.mark.parametrize("groups", [(1,), (3,), (1, 2)])
async def test_every_place_to_fail_is_mended(groups: tuple[int, ...]) -> None:
    body = CHAT | {"stream_options": {"include_usage": True}}
    expected = await uncut(body)
    first = TokenEngine(ANSWER, groups)
    mended = 0
    async with pair(first, TokenEngine(ANSWER)) as running:
        for cut in range(1, len(ANSWER) + 2):
            first.cut = cut
            stream = await ask(running, body)
            if b"event: error" in stream:
                # Several tokens at once, of which the last was half a character: seen, and nothing wrong was written.
                assert groups != (1,)
                assert TEXT.startswith(text_of(stream))
            else:
                same(stream, expected)
                mended += 1
            anew(running)
    assert mended >= (len(ANSWER) + 1 if groups == (1,) else 12)


async def test_a_completion_goes_on_too(hot: bool) -> None:
    body = {"model": MODEL, "prompt": "hi", "stream": True, "temperature": 0, "max_tokens": 9}
    expected = await uncut(body, "/v1/completions")
    async with pair(TokenEngine(ANSWER, cut=4), TokenEngine(ANSWER), hot=hot) as running:
        same(await ask(running, body, "/v1/completions"), expected)


async def test_stop_strings_and_limits_hold_across_the_cut() -> None:
    first = TokenEngine(ANSWER)
    async with pair(first, TokenEngine(ANSWER)) as running:
        for fields in (
            {"stop": [" Then"]},
            {"stop": ["5. Th"]},
            {"max_tokens": 7},
            {"max_completion_tokens": 11, "stop": "."},
        ):
            body = CHAT | fields
            first.cut = None
            expected = await ask(running, body)
            for cut in range(1, 7):
                anew(running)
                first.cut = cut
                same(await ask(running, body), expected)
            anew(running)


async def test_several_tokens_in_a_chunk_and_several_chunks_in_a_read() -> None:
    expected = await uncut(CHAT)
    first = TokenEngine(ANSWER, (2, 1), cut=6, per_read=3)
    async with pair(first, TokenEngine(ANSWER, (1, 4), per_read=4)) as running:
        same(await ask(running, CHAT), expected)


async def test_running_usage_stays_right() -> None:
    body = CHAT | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    async with pair(TokenEngine(ANSWER, cut=5), TokenEngine(ANSWER)) as running:
        stream = await ask(running, body)
    counted = [each["usage"]["completion_tokens"] for each in chunks(stream) if each.get("usage")]
    assert counted == sorted(counted)
    assert counted[-1] == len(ANSWER) + 1
    assert {each["usage"]["prompt_tokens"] for each in chunks(stream) if each.get("usage")} == {len(PROMPT)}


async def test_a_second_break_is_mended_a_third_is_told() -> None:
    """None of them a death: a stream that two engines died of goes nowhere else (`test_poison`)."""
    expected = await uncut(CHAT)
    resumable = {"resume": True, "engine": "vllm"}
    for cuts in ([4, 3], [4, 3, 2]):
        script = TokenEngine(ANSWER, cuts=list(cuts), way="unfinished")
        async with ScriptedEngine(script) as one, ScriptedEngine(script) as two, ScriptedEngine(script) as three:
            engines = enumerate((one, two, three))
            async with running_plane(
                model(*[endpoint(f"m-r{n}", each.port, **resumable) for n, each in engines])
            ) as running:
                stream = await ask(running, CHAT)
                retries = running.plane.meters.of(MODEL).retries
        assert len(script.asked) == 3
        if len(cuts) == 2:
            same(stream, expected)
            assert retries == {"resumed": 2}
        else:
            assert stream.count(b"event: error") == 1
            assert b"[DONE]" not in stream
            assert TEXT.startswith(text_of(stream))
            assert retries == {"resumed": 2, "resume_failed": 1}


async def test_an_engine_that_gives_no_ids_is_an_error_and_never_a_wrong_text(hot: bool) -> None:
    for first, second in (
        (TokenEngine(ANSWER, cut=5, ignores=True), TokenEngine(ANSWER)),
        (TokenEngine(ANSWER, cut=5), TokenEngine([b"Something", b" else"])),
    ):
        first.groups = (2,)
        async with pair(first, second, hot=hot) as running:
            stream = await ask(running, CHAT)
            assert stream.count(b"event: error") == 1
            assert b"[DONE]" not in stream
            assert TEXT.startswith(text_of(stream))
            assert running.plane.meters.of(MODEL).retries.get("resume_failed") == 1


async def test_a_continuation_that_is_turned_away_is_told_or_goes_elsewhere() -> None:
    async with ScriptedEngine(TokenEngine(ANSWER, cut=5)) as one, ScriptedEngine() as two:
        resumable = {"resume": True, "engine": "vllm"}
        routes = [endpoint("m-r0", one.port, **resumable), endpoint("m-r1", two.port, **resumable)]

        async def busy(conversation: Any) -> None:
            await conversation.send(b"HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nfull")

        two.script = busy
        async with running_plane(model(*routes)) as running:
            stream = await ask(running, CHAT)
            assert stream.count(b"event: error") == 1
            assert TEXT.startswith(text_of(stream))
            assert len(running.plane.ledger) == 0


@pytest.mark.parametrize("header", ["x_nebula_no_resume", "x_nebula_no_retry"])
async def test_it_can_be_switched_off(header: str) -> None:
    first = TokenEngine(ANSWER, cut=5)
    async with pair(first, TokenEngine(ANSWER)) as running:
        stream = await ask(running, CHAT, **{header: "1"})
        assert stream.count(b"event: error") == 1
    assert "return_token_ids" not in first.asked[0]
    async with pair(first, TokenEngine(ANSWER), resume=False) as running:
        assert b"event: error" in await ask(running, CHAT)
    async with pair(first, TokenEngine(ANSWER), engine="sglang") as running:
        assert b"event: error" in await ask(running, CHAT)


async def test_a_hung_engine_is_left_behind() -> None:
    expected = await uncut(CHAT)
    first = TokenEngine(ANSWER, cut=5, way="hang")
    async with pair(first, TokenEngine(ANSWER), limits=Limits(gap_seconds=600.0)) as running:
        request = asyncio.create_task(ask(running, CHAT))
        await until(lambda: any((flow := each.flow(0.0)) and flow.events for each in running.plane.ledger))
        for each in running.plane.ledger:
            each.expire(time.monotonic() + 601.0)
        same(await request, expected)


async def test_what_is_not_asked_for_is_not_seen(hot: bool) -> None:
    """Byte for byte what an engine says that was not asked for token ids."""
    for path, body in (
        ("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}}),
        ("/v1/completions", {"model": MODEL, "prompt": "hi", "stream": True}),
    ):
        for per_read, groups in ((1, (1,)), (3, (2, 1))):
            engine = TokenEngine(ANSWER, groups, per_read=per_read)
            async with pair(engine, engine, hot=hot, resume=False) as running:
                plain = await ask(running, body, path)
            async with pair(engine, engine, hot=hot) as running:
                assert await ask(running, body, path) == plain
            assert engine.asked[-1]["return_token_ids"] is True
