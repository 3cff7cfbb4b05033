"""An engine that takes requests and says nothing more is left within seconds; one that is slow is not."""

import asyncio
import dataclasses
import time
from typing import Any

import pytest

from nebula_core.records.compact import ReplicaDelta
from nebula_core.records.endpoint import ModelView
from nebula_core.records.sample import EngineSample
from tests.contracts.data_plane.test_resume import ANSWER, CHAT, TEXT, ask, chunks, pair, text_of
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, until
from tests.support.scripted_engine import STREAM_HEAD, Conversation, answer
from tests.support.token_engine import TokenEngine


async def streams(running: RunningPlane, count: int, events: int) -> list["asyncio.Task[bytes]"]:
    """So many on the first replica, each so far."""
    tasks = [asyncio.create_task(ask(running, CHAT)) for _ in range(count)]
    await until(lambda: sum(len(engine.conversations) for engine in running.engines) >= count)
    await until(lambda: _open_on_first(running, events) >= 1 and len(running.plane.ledger) > 0)
    return tasks


def _open_on_first(running: RunningPlane, events: int) -> int:
    now = time.monotonic()
    flows = [each.flow(now) for each in running.plane.ledger if each.route is not None and each.route.replica == "m-r0"]
    return sum(flow is not None and flow.events >= events for flow in flows)


def last_word(running: RunningPlane) -> float:
    """When the first engine last said something to those who wait there; before that, when it was asked."""
    now = time.monotonic()
    on_first = (each for each in running.plane.ledger if each.route is not None and each.route.replica == "m-r0")
    return now - min((flow.silent for each in on_first if (flow := each.flow(now)) is not None), default=0.0)


def sweep_in(running: RunningPlane, seconds: float) -> None:
    """The look so many seconds after its last word, however long the test has taken since."""
    running.plane.watch.look(list(running.plane.ledger), last_word(running) + seconds)


def out(running: RunningPlane) -> dict[str, str]:
    return running.plane.ejections.reasons(time.monotonic())


async def test_streams_of_a_hung_engine_go_on_elsewhere(hot: bool) -> None:
    first = TokenEngine(ANSWER, cut=6, way="hang")
    async with pair(first, TokenEngine(ANSWER), hot=hot) as running:
        tasks = await streams(running, 4, events=4)
        await until(lambda: _open_on_first(running, 4) == len(running.plane.ledger))
        held = len(running.plane.ledger)
        assert held >= 2
        sweep_in(running, 4.5)
        assert out(running) == {}
        sweep_in(running, 5.5)
        assert out(running) == {"m-r0": "hang"}
        assert [text_of(await task) for task in tasks] == [TEXT] * 4
        assert running.plane.meters.of(MODEL).retries == {"resumed": held}
        # A probe would only wait there: it is left alone for a while.
        assert running.plane.ejections.standing("m-r0", "e1", time.monotonic() + 10).name == "STRUGGLING"


async def test_without_resume_they_end_with_an_error(hot: bool) -> None:
    first = TokenEngine(ANSWER, cut=6, way="hang")
    async with pair(first, TokenEngine(ANSWER), hot=hot, resume=False) as running:
        (task,) = await streams(running, 1, events=4)
        sweep_in(running, 10.5)
        stream = await task
        assert b'"engine_timeout"' in stream
        assert stream.count(b"event: error") == 1


async def test_what_has_not_begun_is_answered_by_another(hot: bool) -> None:
    async def mute(conversation: Conversation) -> None:
        await conversation.gone.wait()

    async with pair(TokenEngine(ANSWER), TokenEngine(ANSWER), hot=hot) as running:
        first = running.engines[0]
        first.script = mute
        task = asyncio.create_task(ask(running, CHAT))
        await until(lambda: first.conversations)
        sweep_in(running, 14.0)
        assert out(running) == {}
        sweep_in(running, 16.0)
        assert out(running) == {"m-r0": "hang"}
        assert text_of(await task) == TEXT
        assert running.plane.meters.of(MODEL).retries == {"hung": 1, "served": 1}


async def test_one_that_could_go_nowhere_else_is_given_more_time(hot: bool) -> None:
    """An error is all it would gain."""
    first = TokenEngine(ANSWER, cut=6, way="hang")
    async with pair(first, TokenEngine(ANSWER), hot=hot) as running:
        (task,) = await streams(running, 1, events=4)
        view = running.plane.table.models[MODEL].view
        running.plane.table.update({MODEL: dataclasses.replace(view, endpoints=view.endpoints[:1])})
        sweep_in(running, 29.0)
        assert out(running) == {}
        sweep_in(running, 49.0)
        assert out(running) == {"m-r0": "hang"}
        assert b'"engine_timeout"' in await task


@pytest.mark.parametrize(
    ("sample", "hangs"),
    [
        (EngineSample(generation_tokens_per_second=80.0, prompt_tokens_per_second=0.0), False),
        (EngineSample(generation_tokens_per_second=0.0, prompt_tokens_per_second=900.0), False),
        (EngineSample(generation_tokens_per_second=0.0, prompt_tokens_per_second=0.0), True),
        (EngineSample(), None),
    ],
)
async def test_the_engines_own_figures_are_heard(sample: EngineSample, hangs: bool | None) -> None:
    first = TokenEngine(ANSWER, cut=6, way="hang")
    # Sampled later than the first sweep to which it looks ahead.
    async with pair(first, TokenEngine(ANSWER), sample=sample, sampled_at=time.monotonic() + 60.0) as running:
        (task,) = await streams(running, 1, events=4)
        sweep_in(running, 7.0)
        assert bool(out(running)) is bool(hangs)
        if not hangs:
            sweep_in(running, 120.0)  # the sample is old by then
        assert out(running) == {"m-r0": "hang"}
        assert text_of(await task) == TEXT


async def test_one_slow_stream_among_flowing_ones_is_no_hang() -> None:
    """Its neighbour has said something: the engine lives."""
    first = TokenEngine(ANSWER, cut=6, way="hang")
    async with pair(first, TokenEngine(ANSWER)) as running:
        tasks = await streams(running, 2, events=4)
        await until(lambda: _open_on_first(running, 4) == len(running.plane.ledger) == 1)
        slow = [each for each in running.plane.ledger if each.route is not None and each.route.replica == "m-r0"]
        route = slow[0].route
        assert route is not None
        route.heard_at = last_word(running) + 55.0
        sweep_in(running, 59.0)
        assert out(running) == {}
        sweep_in(running, 66.0)
        assert out(running) == {"m-r0": "hang"}
        for task in tasks:
            assert chunks(await task)


def heard(running: RunningPlane, rate: float | None, seconds: float) -> None:
    """The agent says, so many seconds after the engine's last word, how fast the first engine's counters go."""
    told = ReplicaDelta(id="m-r0", phase="ready", generation_rate=rate, prompt_rate=None if rate is None else 0.0)
    running.plane.table.heard({"n1": (told,)}, last_word(running) + seconds)


async def test_the_figures_of_each_second_count() -> None:
    """A worker takes them from compact records; what a full report once said of the engine's pace is no word of now."""
    first = TokenEngine(ANSWER, cut=6, way="hang")
    busy = EngineSample(generation_tokens_per_second=80.0, prompt_tokens_per_second=5.0)
    async with pair(first, TokenEngine(ANSWER), sample=busy, sampled_at=time.monotonic()) as running:
        (task,) = await streams(running, 1, events=4)
        heard(running, 60.0, 7.0)  # it makes tokens, which are not shown (a hidden reasoning)
        sweep_in(running, 8.5)
        assert out(running) == {}
        heard(running, 0.0, 8.0)  # and has stopped, but that may have been a moment ago
        sweep_in(running, 8.5)
        assert out(running) == {}
        heard(running, 0.0, 10.0)
        sweep_in(running, 10.5)
        assert out(running) == {"m-r0": "hang"}
        assert text_of(await task) == TEXT


async def test_the_last_tokens_are_told_late() -> None:
    """A sample may speak of the second before it: that is no word for an engine that has hung since."""
    first = TokenEngine(ANSWER, cut=6, way="hang")
    async with pair(first, TokenEngine(ANSWER), sample=EngineSample()) as running:
        (task,) = await streams(running, 1, events=4)
        heard(running, 60.0, 2.0)
        heard(running, 0.0, 5.0)
        sweep_in(running, 6.0)
        assert out(running) == {"m-r0": "hang"}
        assert text_of(await task) == TEXT


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_a_lone_request_without_a_token_leaves_a_replica_that_stands_still(
    hot: bool, path: str, stream: bool
) -> None:
    """The port accepts and `/health` is well: its counters, and no others on it, tell. Who asks for no tokens may wait."""

    async def mute(conversation: Conversation) -> None:
        await conversation.gone.wait()

    async with pair(TokenEngine(ANSWER), TokenEngine(ANSWER), hot=hot) as running:
        first = running.engines[0]
        first.script = mute
        body = CHAT | {"stream": stream, "input": "x"}
        async with running.client() as client:
            task = asyncio.create_task(client.post(path, json=body))
            await until(lambda: first.conversations)
            heard(running, 0.0, 7.0)
            sweep_in(running, 7.5)
            assert out(running) == {}
            heard(running, 0.0, 8.5)
            sweep_in(running, 9.0)
            if path == "/v1/embeddings":
                assert out(running) == {}
                task.cancel()
            else:
                assert out(running) == {"m-r0": "hang"}
                assert (await task).status_code == 200


@pytest.mark.parametrize("rate", [50.0, 0.0])
async def test_an_engine_that_is_silent_to_its_agent_too_stands_still(hot: bool, rate: float) -> None:
    """Its counters were told until it hung; the agent is heard, and has nothing of it any more."""

    async def mute(conversation: Conversation) -> None:
        await conversation.gone.wait()

    async with pair(TokenEngine(ANSWER), TokenEngine(ANSWER), hot=hot) as running:
        first = running.engines[0]
        first.script = mute
        heard(running, rate, -10.0)
        task = asyncio.create_task(ask(running, CHAT))
        await until(lambda: first.conversations)
        heard(running, None, 8.5)
        sweep_in(running, 9.0)
        assert out(running) == {"m-r0": "hang"}
        assert text_of(await task) == TEXT


def gated(moving: asyncio.Event) -> Any:
    """vLLM's server before a frozen engine: it begins every stream at once, refuses and counts tokens as ever."""
    talk = TokenEngine(ANSWER)

    async def script(conversation: Conversation) -> None:
        if conversation.path != b"/v1/chat/completions":
            await conversation.send(answer(b'{"count":1}'))
        elif b"nonsense" in conversation.body:
            await conversation.send(answer(b'{"error":{"message":"no","type":"invalid_request_error"}}', 400))
        elif moving.is_set():
            await talk(conversation)
        else:
            await conversation.send(STREAM_HEAD)
            await conversation.gone.wait()

    return script


async def test_what_the_server_says_by_itself_speaks_for_no_engine(hot: bool) -> None:
    """Traffic that goes on to a frozen engine gets heads, refusals and counts of tokens: none of it is progress."""
    moving = asyncio.Event()
    async with pair(TokenEngine(ANSWER), TokenEngine(ANSWER), hot=hot) as running, running.client() as client:
        first = running.engines[0]
        first.script = gated(moving)
        running.table(model(endpoint("m-r0", first.port)))  # all of it goes there
        waiting = asyncio.create_task(ask(running, CHAT))
        await until(lambda: first.conversations)
        ejections = running.plane.ejections
        route = running.plane.table.route("m-r0")
        assert route is not None
        later = asyncio.create_task(ask(running, CHAT))
        await until(lambda: len(first.conversations) == 2)
        assert (await client.post("/v1/chat/completions", json=CHAT | {"user": "nonsense"})).status_code == 400
        assert (await client.post("/tokenize", json={"model": MODEL, "prompt": "x"})).status_code == 200
        heads = [each for each in running.plane.ledger if each.first_byte_at]
        await until(lambda: sum(bool(each.first_byte_at) for each in running.plane.ledger) == 2)
        assert all(each.heard_at == 0.0 for each in [*heads, *running.plane.ledger])
        assert route.heard_at == 0.0

        running.table(*two(running))
        sweep_in(running, 16.0)
        assert out(running) == {"m-r0": "hang"}
        assert text_of(await waiting) == text_of(await later) == TEXT

        # Its time is over, and it hangs still: the head of a probe does not bring it back.
        running.table(model(endpoint("m-r0", first.port)))
        ejections.held["m-r0"] = ejections.held["m-r0"]._replace(out_until=0.0)
        probe = asyncio.create_task(ask(running, CHAT))
        await until(lambda: any(each.first_byte_at for each in running.plane.ledger))
        assert ejections.held["m-r0"].probing
        running.table(*two(running))
        sweep_in(running, 16.0)
        assert ejections.held["m-r0"].times == 2
        assert text_of(await probe) == TEXT

        # A refusal neither, and it keeps nobody from trying; a token does.
        running.table(model(endpoint("m-r0", first.port)))
        ejections.held["m-r0"] = ejections.held["m-r0"]._replace(out_until=0.0)
        assert (await client.post("/v1/chat/completions", json=CHAT | {"user": "nonsense"})).status_code == 400
        assert not ejections.held["m-r0"].probing
        moving.set()
        assert text_of(await ask(running, CHAT)) == TEXT
        assert not ejections.held


def two(running: RunningPlane) -> list[ModelView]:
    return [model(*(endpoint(f"m-r{number}", engine.port) for number, engine in enumerate(running.engines)))]
