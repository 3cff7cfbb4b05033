"""What a streamed chunk may cost, without a clock: no task, no future, one read, one write (GOALS S5c)."""

import asyncio
import gc
from collections import Counter

import pytest

from nebula_core.runtime.http import UpstreamConnection
from nebula_proxy.traffic.exchange import Exchange
from nebula_proxy.traffic.hot_path import HotCycle
from nebula_proxy.traffic.ledger import Ticket
from nebula_proxy.traffic.resuming import Resumption
from nebula_proxy.traffic.stream import Stream
from tests.support.data_plane import MODEL, endpoint, model, running_plane, until
from tests.support.scripted_engine import DONE, STREAM_HEAD, Conversation, ScriptedEngine, chunked, event
from tests.support.token_engine import TokenEngine

CHUNKS = 200


async def test_a_chunk_makes_no_task_and_is_one_write(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are fed by hand, so that every read is exactly one chunk."""
    begun = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("first"), end=False))
        begun.set()
        await conversation.gone.wait()

    engine.script = script
    connections: list[UpstreamConnection] = []
    made = UpstreamConnection.connection_made

    def noted(self: UpstreamConnection, transport: asyncio.BaseTransport) -> None:
        connections.append(self)
        made(self, transport)

    monkeypatch.setattr(UpstreamConnection, "connection_made", noted)
    async with running_plane(model(endpoint("m-r0", engine.port))) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(running.request())
        await begun.wait()
        meter = running.plane.meters.of(MODEL)
        await until(lambda: sum(meter.ttft.counts) == 1)
        (connection,) = connections
        (downstream,) = running.server.server_state.connections
        writes: list[bytes] = []
        downstream.transport = _Recorder(downstream.transport, writes)  # type: ignore[union-attr]
        pieces = [chunked(event(f"token {number}"), end=False) for number in range(CHUNKS)]
        gc.collect()
        before = len(asyncio.all_tasks()), sum(isinstance(each, asyncio.Future) for each in gc.get_objects())
        turn_ends = running.plane.client.outbox.flush
        for piece in pieces:
            connection.data_received(piece)
            turn_ends()
        after = len(asyncio.all_tasks()), sum(isinstance(each, asyncio.Future) for each in gc.get_objects())
        assert after == before
        assert len(writes) == CHUNKS
        assert writes == pieces  # and the framing of one event is that of the engine
        assert sum(meter.itl.counts) == CHUNKS
        # Several chunks in one read are one write too.
        connection.data_received(chunked(*[event(str(number)) for number in range(10)], end=False))
        turn_ends()
        assert len(writes) == CHUNKS + 1
        connection.data_received(chunked(event("x", finish="stop"), DONE))
        turn_ends()
        assert len(writes) == CHUNKS + 2
        assert len(running.plane.ledger) == 0
        writer.close()
        del reader


class _Recorder:
    """A transport that notes what is written."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


@pytest.mark.parametrize("resume", [False, True])
async def test_a_finished_request_leaves_nothing_for_the_collector(engine: ScriptedEngine, resume: bool) -> None:
    if resume:
        engine.script = TokenEngine([b"a", b" b", b" c"])
    view = model(endpoint("m-r0", engine.port, resume=resume))
    async with running_plane(view) as running, running.client() as client:
        request = {"model": MODEL, "messages": [], "stream": True}
        await client.post("/v1/chat/completions", json=request)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await client.post("/v1/chat/completions", json=request)
            left = Counter(
                type(each).__name__
                for each in gc.get_objects()
                if isinstance(each, Exchange | HotCycle | Ticket | Stream | Resumption)
            )
        finally:
            gc.enable()
        assert left["Exchange"] <= 1
        assert left["Ticket"] == left["Stream"] == left["NotedStream"] == 0
        assert left["Resumption"] <= 1
        assert left["HotCycle"] <= 1  # uvicorn's last cycle of the connection
