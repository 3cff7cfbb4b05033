"""Engines that fail in every way: before the first byte another replica answers, after it the client is told."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest

from nebula_core.records.sample import EngineSample
from nebula_proxy.decisions import ejection
from nebula_proxy.traffic import exchange
from nebula_proxy.traffic.connection import StrictProtocol
from nebula_proxy.traffic.plane import Limits
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import (
    DONE,
    STREAM_HEAD,
    Conversation,
    ScriptedEngine,
    answer,
    chunked,
    completion,
    event,
    tokens,
)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
BUSY_FRAME = (
    b'data: {"error": {"message": "queue full", "type": "Service Unavailable", "param": null, "code": 503}}\n\n'
)
DEAD_FRAME = b'data: {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "param": null, "code": 500}}\n\n'


@pytest.fixture
def dead_port() -> Iterator[Callable[[], int]]:
    """Makes ports that refuse, and that nobody else gets meanwhile: bound, and not listening."""
    with contextlib.ExitStack() as held:

        def make() -> int:
            taken = held.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            return int(taken.getsockname()[1])

        yield make


@pytest.fixture
def out_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was put out is not tried again before the test has ended."""
    monkeypatch.setattr(ejection, "BASE_SECONDS", ejection.LONGEST_SECONDS)


async def post(
    running: RunningPlane, *, stream: bool = True, said: dict[str, object] | None = None, **headers: str
) -> httpx.Response:
    async with running.client() as client:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post("/v1/chat/completions", json=CHAT | {"stream": stream} | (said or {}), headers=names)


def events_of(body: bytes) -> list[bytes]:
    assert body.endswith(b"\n\n")
    return body[:-2].split(b"\n\n")


async def busy(conversation: Conversation) -> None:
    await conversation.send(answer({"error": "full"}, 503))


async def busy_behind_200(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(BUSY_FRAME, DONE))


async def dead_behind_200(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(DEAD_FRAME, DONE))


async def silent_close(conversation: Conversation) -> None:
    conversation.close()


async def reset(conversation: Conversation) -> None:
    conversation.reset()


async def head_then_close(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD)
    conversation.close()


async def half_an_event(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("x")[:20], end=False))
    conversation.close()


async def aborted_at_once(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("", finish="abort"), DONE))


async def draining_vllm(conversation: Conversation) -> None:
    await conversation.send(answer({"error": {"message": "cannot schedule new futures after shutdown"}}, 500))


async def without_its_core(conversation: Conversation) -> None:
    """vLLM between the death of its engine process and its own end (reference/engines.md)."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    await conversation.send(answer({"error": {"message": message, "type": "InternalServerError", "code": 500}}, 500))


BEFORE_THE_FIRST_BYTE = [
    busy, busy_behind_200, dead_behind_200, silent_close, reset, head_then_close, half_an_event, aborted_at_once,
    draining_vllm, without_its_core,
]  # fmt: skip


@pytest.mark.parametrize("failing", BEFORE_THE_FIRST_BYTE)
async def test_before_the_first_byte_another_replica_answers(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, failing: object
) -> None:
    engine.script = failing  # type: ignore[assignment]
    first, second = endpoint("m-r0", engine.port), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        for _ in range(4):
            response = await post(running)
            assert response.content == b"".join(tokens("Hello", " there"))
            assert response.headers["x-nebula-replica"] == "m-r1"
        assert len(running.plane.ledger) == 0
        assert 1 <= running.plane.meters.models[MODEL].retries["served"] <= 4


@pytest.mark.parametrize("failing", [silent_close, reset, busy, draining_vllm, without_its_core])
async def test_a_plain_request_goes_to_another_replica_too(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, failing: object
) -> None:
    engine.script = failing  # type: ignore[assignment]
    first, second = endpoint("m-r0", engine.port), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        for _ in range(4):
            assert (await post(running, stream=False)).json() == completion("Hello there")


async def test_an_engine_without_its_core_is_left_at_once(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, out_for_long: None
) -> None:
    engine.script = without_its_core
    first, second = endpoint("m-r0", engine.port), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        for _ in range(10):
            assert (await post(running, stream=False)).status_code == 200
    assert len(engine.conversations) == 1


async def test_a_plain_answer_cut_in_the_middle_is_asked_again(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine
) -> None:
    async def cut(conversation: Conversation) -> None:
        await conversation.send(answer(completion("Hello there"))[:-10])
        conversation.close()

    engine.script = cut
    first, second = endpoint("m-r0", engine.port), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        for _ in range(2):
            assert (await post(running, stream=False)).json() == completion("Hello there")


async def test_a_refused_port_is_left_at_once(hot: bool, other: ScriptedEngine, dead_port: Callable[[], int]) -> None:
    first, second = endpoint("m-r0", dead_port()), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        responses = await asyncio.gather(*(post(running) for _ in range(20)))
        assert {response.status_code for response in responses} == {200}
        assert set(running.plane.ejections.reasons(0.0)) == {"m-r0"}
        # The budget is for retries that may double an engine's work.
        assert running.plane.budget.left == running.plane.budget.reserve


async def test_an_engine_that_is_back_is_used_again(hot: bool, engine: ScriptedEngine, other: ScriptedEngine) -> None:
    first, second = endpoint("m-r0", engine.port), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        await engine.die()
        for _ in range(4):
            assert (await post(running)).headers["x-nebula-replica"] == "m-r1"
        await engine.__aenter__()

        async def served_by_first() -> bool:
            return (await post(running)).headers["x-nebula-replica"] == "m-r0"

        async with asyncio.timeout(60):
            while not await served_by_first():
                await asyncio.sleep(0.05)
        assert running.plane.ejections.reasons(0.0) == {}


async def test_nobody_left_is_503_with_a_time(hot: bool, dead_port: Callable[[], int]) -> None:
    async with running_plane(model(endpoint("m-r0", dead_port())), hot_path=hot) as running:
        response = await post(running)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_replica")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.headers["x-should-retry"] == "true"


async def test_a_single_engine_that_dies_is_502(hot: bool, engine: ScriptedEngine) -> None:
    engine.script = silent_close
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        response = await post(running)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "engine_died")
        # One endpoint is never taken away for what a request can cause.
        engine.script = ScriptedEngine().script
        assert (await post(running)).status_code == 200


@pytest.mark.parametrize("wish", [{"x_nebula_no_retry": "1"}])
async def test_no_retry_is_obeyed(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, wish: dict[str, str]
) -> None:
    engine.script = other.script = silent_close
    first, second = endpoint("m-r0", engine.port), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        assert (await post(running, **wish)).status_code == 502
    assert len(engine.conversations) + len(other.conversations) == 1


async def test_one_retry_and_no_more(hot: bool, engine: ScriptedEngine, other: ScriptedEngine) -> None:
    engine.script = other.script = silent_close
    async with ScriptedEngine(silent_close) as third:
        ports = (engine.port, other.port, third.port)
        endpoints = [endpoint(f"m-r{number}", port) for number, port in enumerate(ports)]
        async with running_plane(model(*endpoints), hot_path=hot) as running:
            assert (await post(running)).status_code == 502
        assert sum(len(each.conversations) for each in (engine, other, third)) == 2


async def test_engines_that_are_not_there_are_no_attempts(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, dead_port: Callable[[], int], out_for_long: None
) -> None:
    """A machine goes with three of five engines: whoever was on one of them finds the other two gone as well."""
    engine.script = silent_close
    ports = (engine.port, dead_port(), dead_port(), other.port)
    async with running_plane(model(*(endpoint(f"m-r{n}", port) for n, port in enumerate(ports))), hot_path=hot) as run:
        for _ in range(3):
            assert (await post(run)).status_code == 200
    assert len(engine.conversations) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_whoever_was_on_one_of_two_engines_that_die_together_does_not_meet_both_deaths(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, stream: bool
) -> None:
    killed = asyncio.Event()

    async def dies(conversation: Conversation) -> None:
        await killed.wait()
        conversation.reset()

    engine.script = other.script = dies
    async with ScriptedEngine() as third:
        in_use = EngineSample(requests_running=2, requests_waiting=2, kv_cache_usage=0.1)
        endpoints = (
            *(endpoint(f"m-r{number}", each.port) for number, each in enumerate((engine, other))),
            endpoint("m-r2", third.port, sample=in_use),
        )
        async with running_plane(model(*endpoints), hot_path=hot) as running:
            asked = [
                asyncio.create_task(post(running, stream=stream, said=said, x_nebula_strategy="least_pending"))
                for said in ({"max_tokens": 8}, {"max_tokens": 9})  # the same body on two of the dead would be suspect
            ]
            await until(lambda: engine.conversations and other.conversations)
            killed.set()
            served = [await each for each in asked]
            assert [(one.status_code, one.headers["x-nebula-replica"]) for one in served] == [(200, "m-r2")] * 2
        assert [len(each.conversations) for each in (engine, other, third)] == [1, 1, 2]


async def test_a_client_that_leaves_while_its_request_waits_after_a_death_is_asked_for_nowhere(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than anything may take here: what comes when it is over is done below.
    monkeypatch.setattr(exchange, "pause_after", lambda *_: 600.0)
    engine.script = other.script = silent_close
    views = model(*(endpoint(f"m-r{number}", each.port) for number, each in enumerate((engine, other))))
    async with running_plane(views, hot_path=hot) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(running.request())
        await until(lambda: running.plane.budget.left < running.plane.budget.reserve)
        (waiting,) = running.plane.ledger
        assert isinstance(waiting, exchange.Exchange)
        writer.transport.abort()
        await until(lambda: len(running.plane.ledger) == 0)
        went: list[str] = []
        waiting._pause_over(lambda: went.append("elsewhere"))
        assert went == []
        assert len(engine.conversations) + len(other.conversations) == 1
        assert running.plane.meters.models[MODEL].statuses == {499: 1}


async def test_who_died_is_left_alone_though_no_agent_has_a_word(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine
) -> None:
    """All agents are silent, so nothing but our own evidence tells the dead from the living."""

    async def hang_on(conversation: Conversation) -> None:
        await conversation.gone.wait()

    engine.script = hang_on
    long_ago = time.monotonic() - 60.0
    views = model(*(endpoint(f"m-r{n}", each.port, sampled_at=long_ago) for n, each in enumerate((engine, other))))
    async with running_plane(views, hot_path=hot) as running:
        asked = [asyncio.create_task(post(running)) for _ in range(4)]
        await until(lambda: len(engine.conversations) >= 1 and len(running.plane.ledger) >= 1)
        await engine.die()
        assert {(await each).status_code for each in asked} == {200}
        for _ in range(6):
            assert (await post(running)).status_code == 200
        assert running.plane.ejections.reasons(time.monotonic()) == {"m-r0": "refused"}


async def test_the_budget_ends_retries(hot: bool, engine: ScriptedEngine, other: ScriptedEngine) -> None:
    engine.script = other.script = busy
    first, second = endpoint("m-r0", engine.port), endpoint("m-r1", other.port)
    async with running_plane(model(first, second), hot_path=hot) as running:
        for _ in range(60):
            response = await post(running)
            assert (response.status_code, response.json()) == (503, {"error": "full"})
            assert "retry-after" in response.headers
        attempts = len(engine.conversations) + len(other.conversations)
        assert attempts <= 60 + running.plane.budget.reserve + 6


async def test_a_kept_connection_that_was_closed_is_replaced(hot: bool, engine: ScriptedEngine) -> None:
    async def once(conversation: Conversation) -> None:
        if len(engine.conversations) == 2:
            conversation.reset()  # as an engine does whose keep-alive ran out while the request was on its way
        else:
            await conversation.send(answer(completion("x")))

    engine.script = once
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        for _ in range(2):
            assert (await post(running, stream=False)).status_code == 200
        assert running.plane.ejections.reasons(0.0) == {}
    assert (engine.connections, len(engine.conversations)) == (2, 3)


# After the first byte


async def eof(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), event("two"), end=False))
    conversation.close()


async def eof_in_an_event(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), event("two"), event("three")[:30], end=False))
    conversation.close()


async def eof_in_a_chunk(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), event("two"), end=False) + b"ff\r\ndata: {")
    conversation.close()


async def clean_end_without_done(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
    await asyncio.sleep(0.01)
    await conversation.send(chunked(event("two")))


async def error_frame(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), event("two"), DEAD_FRAME, DONE))


async def error_frame_later(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
    await asyncio.sleep(0.01)
    await conversation.send(chunked(event("two"), DEAD_FRAME + DONE))


async def abort_frame(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), event("two"), event("", finish="abort"), DONE))


async def bad_chunk(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), event("two"), end=False) + b"zz\r\n")
    await conversation.gone.wait()


AFTER_THE_FIRST_BYTE = [
    eof, eof_in_an_event, eof_in_a_chunk, clean_end_without_done, error_frame, error_frame_later, abort_frame, bad_chunk,
]  # fmt: skip


@pytest.mark.parametrize("failing", AFTER_THE_FIRST_BYTE)
async def test_after_the_first_byte_the_stream_says_so(
    hot: bool, engine: ScriptedEngine, other: ScriptedEngine, failing: object
) -> None:
    engine.script = failing  # type: ignore[assignment]
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        response = await post(running)
        assert response.status_code == 200
        one, two, end = events_of(response.content)
        assert (one + b"\n\n", two + b"\n\n") == (event("one"), event("two"))
        name, data = end.split(b"\n")
        assert name == b"event: error"
        error = json.loads(data.removeprefix(b"data: "))["error"]
        assert (error["code"], error["origin"]) == ("engine_died", "engine")
        assert b"[DONE]" not in response.content
        await until(lambda: running.server.connections == 0)  # then close
        meter = running.plane.meters.models[MODEL]
        assert (meter.failed, meter.statuses) == (1, {502: 1})


async def test_the_openai_client_raises(hot: bool, engine: ScriptedEngine) -> None:
    engine.script = eof
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running,
        openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.token, max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(stream=True, **CHAT)  # type: ignore[call-overload]
        texts = []

        async def read() -> None:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content)

        with pytest.raises(openai.APIError, match="cannot go on"):
            await read()
        assert texts == ["one", "two"]


async def test_a_finished_stream_gets_the_mark_its_engine_does_not_send(hot: bool, engine: ScriptedEngine) -> None:
    async def transformers(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), event("two", finish="stop")))

    engine.script = transformers
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        assert (await post(running)).content == event("one") + event("two", finish="stop") + DONE


async def test_a_stream_lost_before_its_mark_is_told(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), event("two", finish="stop"), end=False))
        conversation.close()

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        assert b"event: error\n" in (await post(running)).content


async def test_a_stream_lost_behind_its_mark_is_whole(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(*tokens("one", "two"), end=False))
        conversation.close()

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        assert (await post(running)).content == b"".join(tokens("one", "two"))


async def test_a_long_plain_answer_that_breaks_is_not_ended(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(answer({"data": "x" * 300_000})[:-10])
        conversation.close()

    engine.script = script
    limits = Limits(hold_bytes=10_000)
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, limits=limits) as running:
        with pytest.raises(httpx.RemoteProtocolError):
            await post(running, stream=False)


async def test_an_event_without_end_is_refused(hot: bool, engine: ScriptedEngine) -> None:
    async def endless(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        await asyncio.sleep(0.01)
        while not conversation.gone.is_set():
            await conversation.send(chunked(b"x" * 10_000, end=False))

    engine.script = endless
    limits = Limits(event_bytes=100_000)
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, limits=limits) as running:
        one, end = events_of((await post(running)).content)
        assert one + b"\n\n" == event("one")
        assert end.startswith(b"event: error\n")


async def test_an_error_of_the_request_passes_as_the_engine_said_it(hot: bool, engine: ScriptedEngine) -> None:
    frame = b'data: {"error": {"message": "too long", "code": 400}}\n\n'

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(frame, DONE))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        assert (await post(running)).content.startswith(frame)
        assert len(engine.conversations) == 1


# Time


async def test_no_first_byte_in_time_is_504(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.gone.wait()

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        waiting = asyncio.create_task(post(running))
        await until(lambda: engine.conversations)
        running.plane.sweep(asyncio.get_running_loop().time() + 1000)
        response = await waiting
        assert (response.status_code, response.json()["error"]["code"]) == (504, "engine_timeout")
        async with asyncio.timeout(30):
            await engine.conversations[0].gone.wait()


async def test_a_stream_that_falls_silent_is_ended(hot: bool, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        await conversation.gone.wait()

    engine.script = script
    async with (
        running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running,
        running.client() as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
    ):
        pieces = response.aiter_bytes()
        assert await anext(pieces) == event("one")
        running.plane.sweep(asyncio.get_running_loop().time() + 1000)
        rest = b"".join([piece async for piece in pieces])
        assert b"engine_timeout" in rest


# The client goes


async def prefill(conversation: Conversation) -> None:
    await conversation.gone.wait()


async def mid_stream(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
    await conversation.gone.wait()


@pytest.mark.parametrize(("script", "stream"), [(prefill, True), (prefill, False), (mid_stream, True)])
async def test_a_client_that_leaves_stops_the_engine(
    hot: bool, engine: ScriptedEngine, script: object, stream: bool
) -> None:
    engine.script = script  # type: ignore[assignment]
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(running.request(stream=stream))
        await until(lambda: engine.conversations)
        if script is mid_stream:
            await until(lambda: running.plane.meters.models[MODEL].ttft.sum > 0)
        writer.close()
        async with asyncio.timeout(30):
            await engine.conversations[0].gone.wait()
        await until(lambda: len(running.plane.ledger) == 0)
        assert running.plane.meters.models[MODEL].statuses == {499: 1}
        await until(lambda: running.plane.client.open_connections == 0)


async def test_a_slow_client_slows_its_engine_down(hot: bool, engine: ScriptedEngine) -> None:
    sent = 0

    async def flood(conversation: Conversation) -> None:
        nonlocal sent
        await conversation.send(STREAM_HEAD)
        while not conversation.gone.is_set():
            await conversation.send(chunked(event("x" * 1000), end=False))
            sent += 1

    engine.script = flood
    limits = Limits(write_seconds=30.0)
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, limits=limits) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
        writer.write(running.request())
        await until(lambda: engine.conversations)
        (connection,) = running.server.server_state.connections
        assert isinstance(connection, StrictProtocol)
        await until(lambda: connection.paused_since is not None)
        before, looks = -1, 0
        async with asyncio.timeout(30):
            while looks < 20:  # nothing announces that no more is sent
                before, looks = sent, looks + 1 if sent == before else 0
                await asyncio.sleep(0.01)
        assert sent < 20_000  # socket buffers, not memory
        now = asyncio.get_running_loop().time()
        running.plane.sweep(now + 31)
        running.server.sweep()
        async with asyncio.timeout(30):
            await engine.conversations[0].gone.wait()
        await until(lambda: len(running.plane.ledger) == 0)
        writer.transport.abort()
        del reader
