"""The record of a request: what is kept, what is in it, and that no prompt and no key ever is."""

import asyncio
import json
import time

import httpx
import pytest

from nebula_core.records.access import Role
from nebula_core.records.decision import DecisionRecord
from nebula_core.records.deployment import Limits as ReplicaLimits
from nebula_core.records.inflight import ProxyCommand
from nebula_core.store.connection import connect
from nebula_proxy.decisions.sampling import Sampling
from nebula_proxy.traffic.inquiries import Inquiries
from nebula_proxy.traffic.recorder import MAX_WAITING, Recorder
from nebula_proxy.traffic.waiting_room import RoomLimits
from tests.support.data_plane import MODEL, RunningPlane, endpoint, key, model, running_plane, until
from tests.support.scripted_engine import STREAM_HEAD, Conversation, ScriptedEngine, chunked, event

ALL = Sampling(ratio=1.0, most=1000)


def record(number: int = 0) -> DecisionRecord:
    return DecisionRecord(id=f"req-{number}", proxy="p", at=1.0, path="/v1/chat/completions")


async def ask(
    running: RunningPlane, *, stream: bool = True, token: str | None = None, **headers: str
) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "canary-prompt"}], "stream": stream}
    async with running.client(token) as client:
        return await client.post("/v1/chat/completions", json=body, headers=headers)


def kept(running: RunningPlane) -> list[DecisionRecord]:
    return running.plane.recorder._waiting


async def test_a_served_stream_leaves_all_its_figures() -> None:
    async with ScriptedEngine() as engine, ScriptedEngine() as other:
        two = model(endpoint("m-r0", engine.port), endpoint("m-r1", other.port))
        async with running_plane(two, recorder=Recorder(ALL)) as running:
            trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
            answer = await ask(running, traceparent=trace, **{"x-request-id": "mine"})
            assert answer.status_code == 200
            [found] = kept(running)
            assert (found.id, found.outcome, found.status, found.kept_because) == ("mine", "ok", 200, "sample")
            assert found.model == MODEL
            assert found.key_name == "test"
            assert found.trace_id == "ab" * 16
            assert found.replica == answer.headers["x-nebula-replica"]
            assert (found.prompt_tokens, found.completion_tokens) == (3, 2)
            assert found.ttft_seconds is not None
            assert found.duration_seconds is not None
            assert found.tpot_seconds is not None
            assert 0 < found.ttft_seconds <= found.duration_seconds
            assert found.response_bytes == len(answer.content)
            [attempt] = found.attempts
            assert attempt.strategy
            assert attempt.trouble is None
            assert attempt.first_byte_seconds is not None
            assert {row.replica for row in attempt.candidates} == {"m-r0", "m-r1"}
            text = found.to_json()
            assert "canary" not in text
            assert running.token not in text
            assert DecisionRecord.from_json(text) == found
            counts = running.plane.meters.models[MODEL].tpot.counts
            assert sum(counts) == 1


async def test_a_retry_is_told_with_its_trouble() -> None:
    async def close(conversation: Conversation) -> None:
        conversation.close()

    async with ScriptedEngine(close) as bad, ScriptedEngine() as good:
        two = model(endpoint("m-r0", bad.port), endpoint("m-r1", good.port))
        async with running_plane(two, recorder=Recorder(Sampling(ratio=0.0, floor=0))) as running:
            while not bad.conversations:
                assert (await ask(running)).status_code == 200
            [found] = kept(running)
            assert found.kept_because == "retried"
            first, second = found.attempts
            assert (first.replica, first.trouble) == ("m-r0", "lost")
            assert (second.replica, second.trouble) == ("m-r1", None)
            assert next(row for row in second.candidates if row.replica == "m-r0").lost_because == "it was tried before"
            assert second.at_seconds >= first.at_seconds


async def test_broken_streams_and_refusals_are_kept_strangers_are_not() -> None:
    async def broken(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("x"), end=False))
        conversation.close()

    quiet = Sampling(ratio=0.0, floor=0, most_rejected=2)
    async with ScriptedEngine(broken) as engine:
        async with running_plane(model(endpoint("m-r0", engine.port)), recorder=Recorder(quiet)) as running:
            await ask(running)
            [found] = kept(running)
            assert (found.kept_because, found.outcome, found.status) == ("error", "broken", 502)
            assert found.attempts[0].trouble == "lost"
            assert len(found.attempts) == 1
            running.table(model())
            for _ in range(5):
                assert (await ask(running)).status_code == 503
            assert [one.kept_because for one in kept(running)] == ["error", "rejected", "rejected"]
            assert running.plane.recorder.dropped == 3
            rejected = kept(running)[-1]
            assert (rejected.admission, rejected.admission_reason) == ("reject", "no_replica")
            running.plane.recorder.tick()
            await ask(running)
            assert len(kept(running)) == 4
        async with running_plane(recorder=Recorder(ALL)) as running:
            assert (await ask(running, token="nbl_no_such")).status_code == 401
            assert kept(running) == []


async def test_the_request_of_a_person_is_always_kept() -> None:
    token, operator = key(Role.OPERATOR)
    async with ScriptedEngine() as engine:
        one = model(endpoint("m-r0", engine.port))
        sampling = Sampling(ratio=0.0, floor=0)
        async with running_plane(one, recorder=Recorder(sampling), extra_keys=[operator]) as running:
            await ask(running)
            await ask(running, token=token, **{"x-nebula-replica": "m-r0"})
            [found] = kept(running)
            assert found.kept_because == "person"
            assert found.attempts[0].reason == "pinned"


async def test_the_buffer_is_bounded_and_outlives_an_outage(own_store) -> None:
    recorder = Recorder(Sampling(most=10 * MAX_WAITING))
    for number in range(MAX_WAITING + 7):
        recorder.take("sample", lambda number=number: record(number))
    assert len(recorder) == MAX_WAITING
    assert recorder.dropped == 7
    server = own_store()
    async with await connect(server.settings()) as store:
        server.kill()
        await recorder.flush(store)
        assert len(recorder) == MAX_WAITING
        server.start()
        async with asyncio.timeout(60):
            while len(recorder):
                await recorder.flush(store)
        assert recorder.written == MAX_WAITING
        assert await store.find_request("req-0") is not None
        assert (await store.read_requests(1))[-1].id == f"req-{MAX_WAITING - 1}"


async def test_the_allowance_is_of_a_second() -> None:
    recorder = Recorder(Sampling(floor=2, most=3))
    for _ in range(5):
        recorder.take("floor", record)
    assert len(recorder) == 3
    assert recorder.floor_left < 0
    recorder.tick()
    assert recorder.floor_left == 2
    recorder.take("error", record)
    assert len(recorder) == 4
    assert recorder.dropped == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_the_log_line_has_what_is_needed_to_find_the_rest(stream: bool, tmp_path) -> None:
    from nebula_proxy.traffic.request_log import RequestLog

    path = tmp_path / "log"
    with path.open("wb") as out:
        log = RequestLog(out)
        async with ScriptedEngine() as engine, running_plane(model(endpoint("m-r0", engine.port)), log=log) as running:
            trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
            await ask(running, stream=stream, traceparent=trace)
    line = json.loads(path.read_text().splitlines()[-1])
    assert line["strategy"]
    assert line["trace_id"] == "ab" * 16
    assert line["attempts"] == 1
    assert line["key"]
    assert "resumes" not in line  # none: left out
    assert "canary" not in json.dumps(line)


async def test_cancelling_ends_streams_and_waits_alike() -> None:
    async def slowly(conversation: Conversation) -> None:
        if conversation.json["stream"]:
            await conversation.send(STREAM_HEAD + chunked(event("x"), end=False))
        await conversation.gone.wait()

    async with ScriptedEngine(slowly) as engine:
        one = model(endpoint("m-r0", engine.port))
        async with running_plane(one, recorder=Recorder(ALL)) as running:
            for stream in (True, False):
                task = asyncio.create_task(ask(running, stream=stream))
                begun = "streaming" if stream else "running"
                await until(lambda begun=begun: any(one.phase == begun for one in running.plane.ledger))
                [exchange] = running.plane.ledger
                exchange.cancel()
                exchange.cancel()
                answer = await task
                await asyncio.wait_for(engine.conversations[-1].gone.wait(), 60)
                if stream:
                    assert answer.status_code == 200
                    assert b'"code":"request_cancelled"' in answer.content
                    assert b"[DONE]" not in answer.content
                else:
                    assert answer.status_code == 499
                    assert answer.json()["error"]["code"] == "request_cancelled"
                assert kept(running)[-1].status == 499
            assert len(running.plane.ledger) == 0


async def test_what_a_person_ended_is_always_kept_and_known_before_it_is_written(own_store) -> None:
    async def held(conversation: Conversation) -> None:
        await conversation.gone.wait()

    server = own_store()
    async with ScriptedEngine(held) as engine, await connect(server.settings()) as store:
        one = model(endpoint("m-r0", engine.port))
        recorder = Recorder(Sampling(ratio=0.0, floor=0))
        async with running_plane(one, recorder=recorder) as running:
            task = asyncio.create_task(ask(running, **{"x-request-id": "mine"}))
            await until(lambda: engine.conversations)
            for exchange in running.plane.ledger:
                exchange.cancel()
            assert (await task).status_code == 499
            inquiries = Inquiries(running.plane, store)
            commands = [ProxyCommand(id=kind, kind=kind, request="mine") for kind in ("explain", "cancel")]
            for command in commands:
                await store.command_proxies(["test"], command)
            await inquiries.listen()
            for command in commands:
                [said] = await store.command_answers(command.id)
                assert said.record is not None
                assert (said.record.status, said.record.outcome) == (499, "request_cancelled")
            await recorder.flush(store)
            assert await store.find_request("mine") is not None


async def test_who_waits_for_room_can_be_seen_and_cancelled() -> None:
    async def held(conversation: Conversation) -> None:
        await conversation.gone.wait()

    async with ScriptedEngine(held) as engine:
        one = model(endpoint("m-r0", engine.port, limits=ReplicaLimits(inflight=1)))
        async with running_plane(one, recorder=Recorder(ALL), room=RoomLimits(places=4, seconds=30.0)) as running:
            first = asyncio.create_task(ask(running))
            await until(lambda: engine.conversations)
            second = asyncio.create_task(ask(running))
            await until(lambda: any(one.phase == "waiting" for one in running.plane.ledger))
            [waiting] = [one for one in running.plane.ledger if one.phase == "waiting"]
            row = waiting.glance(waiting.at + 2.0)
            assert (row.phase, row.replica, row.attempts) == ("waiting", None, 0)
            assert row.wait_seconds == pytest.approx(2.0)
            waiting.cancel()
            answer = await second
            assert (answer.status_code, answer.json()["error"]["code"]) == (499, "request_cancelled")
            assert not running.plane.room.waiting
            assert len(running.plane.ledger) == 1
            for exchange in running.plane.ledger:
                exchange.cancel()
            await first


async def test_a_row_says_where_it_stands() -> None:
    go, on = asyncio.Event(), asyncio.Event()

    async def held(conversation: Conversation) -> None:
        await go.wait()
        await conversation.send(STREAM_HEAD + chunked(event("a"), end=False))
        await on.wait()
        await conversation.send(chunked(event("b"), end=False))
        await conversation.gone.wait()

    async with ScriptedEngine(held) as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        task = asyncio.create_task(ask(running))
        await until(lambda: engine.conversations)
        [exchange] = running.plane.ledger
        row = exchange.glance(exchange.at + 3.0)
        assert (row.phase, row.replica, row.events, row.ttft_seconds, row.stalled) == (
            "prefill",
            "m-r0",
            0,
            None,
            None,
        )
        assert row.age_seconds == pytest.approx(3.0)
        assert row.key_name == "test"
        assert row.client == "127.0.0.1"
        go.set()
        await until(lambda: exchange.glance(0).events == 1)
        on.set()
        await until(lambda: exchange.glance(0).events == 2)
        row = exchange.glance(time.monotonic() + 9.0)
        assert (row.phase, row.stalled) == ("streaming", "engine")
        assert row.ttft_seconds is not None
        assert row.sent_bytes > 0
        asked = exchange.record("asked")
        assert (asked.outcome, asked.status, asked.kept_because) == ("open", None, "asked")
        assert asked.attempts[0].replica == "m-r0"
        exchange.cancel()
        await task
