"""A connection that is over is freed there and then: one that waits for the collector waits for a million objects."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from nebula_proxy.traffic.connection import StrictProtocol
from nebula_proxy.traffic.plane import Limits
from tests.support.data_plane import RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import DONE, STREAM_HEAD, Conversation, ScriptedEngine, chunked, event


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _connection(running: RunningPlane) -> weakref.ref[StrictProtocol]:
    (connection,) = running.server.server_state.connections
    assert isinstance(connection, StrictProtocol)
    return weakref.ref(connection)


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a body", "a known head", "a stream", "refused"])
async def test_a_connection_that_is_over_is_freed(engine: ScriptedEngine, sent: str, no_collector: None) -> None:
    open_ended = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(event("one"), end=False))
        if sent == "a stream":
            open_ended.set()
            await conversation.gone.wait()
        else:
            await conversation.send(chunked(event("two", finish="stop"), DONE))

    engine.script = script
    limits = Limits(header_seconds=0.0, body_grace_seconds=0.0, body_bytes_per_second=1e9)
    async with running_plane(model(endpoint("m-r0", engine.port)), limits=limits) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        await until(lambda: running.server.connections == 1)
        connection = _connection(running)
        whole = running.request()
        if sent == "half a head":
            writer.write(whole[:30])
        elif sent in {"half a body", "refused"}:
            writer.write(whole[:-10])
        elif sent == "a stream":
            writer.write(whole)
            await open_ended.wait()
        elif sent == "a known head":
            for _ in range(3):
                writer.write(whole)
                await reader.readuntil(b"0\r\n\r\n")
            writer.write(whole[:-10])
        if sent not in {"nothing", "a stream"}:
            await until(lambda: connection().phase.name in {"HEAD", "BODY"})  # type: ignore[union-attr]
        if sent == "refused":
            await asyncio.sleep(0)
            running.server.sweep()  # what its deadline says
            assert (await reader.read(-1)).startswith(b"HTTP/1.1 408")
        writer.close()
        await until(lambda: connection() is None)


async def test_a_slow_reader_holds_little(engine: ScriptedEngine) -> None:
    """What its socket does not take lies in the worker only up to one read of the engine beyond the bound."""

    async def script(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD)
        while not conversation.gone.is_set():
            await conversation.send(chunked(event("x" * 4000), end=False))

    engine.script = script
    async with running_plane(model(endpoint("m-r0", engine.port))) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
        writer.write(running.request())
        await until(lambda: running.server.connections == 1)
        (connection,) = running.server.server_state.connections
        assert isinstance(connection, StrictProtocol)
        await until(lambda: connection.paused_since is not None)
        assert connection.transport.get_write_buffer_limits() == (4096, 16384)
        assert connection.transport.get_write_buffer_size() <= 16384 + 256 * 1024
        writer.transport.abort()
        await until(lambda: not running.plane.ledger)
