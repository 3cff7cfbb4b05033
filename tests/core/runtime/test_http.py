"""The client to engines: connections kept and given up, answers framed in every way, failures told apart."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nebula_core.runtime.http import Failure, FailureKind, Headers, UpstreamClient, UpstreamError, fetch
from tests.support.data_plane import until
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, chunked


class Taker:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.ended = False
        self.failure: Failure | None = None

    def response_started(self, status: int, headers: Headers) -> None:
        assert not self.over
        self.status, self.headers = status, headers

    def response_body(self, body: bytes, *, ended: bool) -> None:
        assert not self.over
        self.pieces.append(body)
        self.ended = ended

    def response_failed(self, failure: Failure) -> None:
        assert not self.over
        self.failure = failure

    @property
    def over(self) -> bool:
        return self.ended or self.failure is not None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    async with ScriptedEngine() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[UpstreamClient]:
    opened = UpstreamClient()
    yield opened
    await opened.aclose()
    assert opened.open_connections == 0


def says(engine: ScriptedEngine, *pieces: bytes, close: bool = False) -> None:
    """Each piece is a write of its own."""

    async def script(conversation: Conversation) -> None:
        for piece in pieces:
            await conversation.send(piece)
            await asyncio.sleep(0)
        if close:
            conversation.close()

    engine.script = script


async def ask(client: UpstreamClient, engine: ScriptedEngine, **options: bool) -> Taker:
    taker = Taker()
    client.request(("127.0.0.1", engine.port), GET, taker, **options)
    await until(lambda: taker.over)
    return taker


HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, tuple[bytes, bool]] = {
    "a length": (HEAD + b"Content-Length: 5\r\n\r\nhello", False),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"he", b"l", b"lo"), False),
    "chunks and a trailer": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hello", end=False) + b"0\r\nX-T: 1\r\n\r\n",
        False,
    ),
    "an end by closing": (HEAD + b"\r\nhello", True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", True),
    "after a 100": (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello", False),
    "after a 103": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello",
        False,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_answers_framed_in_every_way(
    client: UpstreamClient, engine: ScriptedEngine, name: str, size: int
) -> None:
    wire, close = ANSWERS[name]
    says(engine, *(wire[at : at + size] for at in range(0, len(wire), size)), close=close)
    taker = await ask(client, engine)
    assert (taker.status, taker.body, taker.failure) == (200, b"hello", None)
    assert b"x-t" not in dict(taker.headers)
    assert b"link" not in dict(taker.headers)
    assert client.idle_connections == (0 if close else 1)


async def test_no_body_at_all(client: UpstreamClient, engine: ScriptedEngine) -> None:
    says(engine, b"HTTP/1.1 204 No Content\r\n\r\n")
    taker = await ask(client, engine)
    assert (taker.status, taker.body) == (204, b"")
    assert client.idle_connections == 1


async def test_one_read_is_one_call(client: UpstreamClient, engine: ScriptedEngine) -> None:
    says(engine, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*[b"x"] * 50))
    assert (await ask(client, engine)).pieces == [b"x" * 50]


async def test_connections_are_kept_and_used_again(client: UpstreamClient, engine: ScriptedEngine) -> None:
    says(engine, answer({}))
    for _ in range(5):
        await ask(client, engine)
    assert engine.connections == 1
    await ask(client, engine, fresh=True)
    assert engine.connections == 2


async def test_a_connection_is_not_kept_when_its_end_is_in_doubt(
    client: UpstreamClient, engine: ScriptedEngine
) -> None:
    for wire in (
        answer({}, connection="close"),
        answer({}) + b"surplus",
        answer({}) + answer({"another": 1}),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ):
        says(engine, wire)
        taker = await ask(client, engine)
        assert taker.body == b"{}"
        assert client.idle_connections == 0


async def test_bytes_on_an_idle_connection_close_it(client: UpstreamClient, engine: ScriptedEngine) -> None:
    more = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.send(answer({}))
        await more.wait()
        await conversation.send(answer({"smuggled": 1}))

    engine.script = script
    await ask(client, engine)
    assert client.idle_connections == 1
    more.set()
    await until(lambda: client.open_connections == 0)


async def test_idle_connections_end(engine: ScriptedEngine) -> None:
    client = UpstreamClient(idle_seconds=4.0)
    says(engine, answer({}))
    before = asyncio.get_running_loop().time()
    await ask(client, engine)
    after = asyncio.get_running_loop().time()
    assert client.sweep(before + 3) == 0
    assert client.sweep(after + 5) == 1
    await until(lambda: client.open_connections == 0)
    await client.aclose()


BROKEN: dict[str, tuple[bytes, FailureKind, bool]] = {
    "nothing": (b"", FailureKind.LOST, False),
    "half a head": (b"HTTP/1.1 200", FailureKind.LOST, True),
    "half a body": (HEAD + b"Content-Length: 5\r\n\r\nhel", FailureKind.LOST, True),
    "half a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", FailureKind.LOST, True),
    "no last chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", FailureKind.LOST, True),
    "no HTTP": (b"220 mail.example ESMTP\r\n\r\n", FailureKind.MALFORMED, True),
    "a bad chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", FailureKind.MALFORMED, True),
    "both framings": (
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        FailureKind.MALFORMED,
        True,
    ),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", FailureKind.MALFORMED, True),
    "many headers": (HEAD + b"X: 1\r\n" * 200 + b"\r\n", FailureKind.MALFORMED, True),
    "a long header": (HEAD + b"X: " + b"x" * 100_000, FailureKind.MALFORMED, True),
    "a switch": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        FailureKind.MALFORMED,
        True,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_failures_are_told_apart(client: UpstreamClient, engine: ScriptedEngine, name: str) -> None:
    wire, kind, answered = BROKEN[name]
    says(engine, wire, close=True)
    taker = await ask(client, engine)
    assert taker.failure is not None
    assert (taker.failure.kind, taker.failure.answered) == (kind, answered)
    await until(lambda: client.open_connections == 0)


async def test_a_refused_port(client: UpstreamClient, engine: ScriptedEngine) -> None:
    await engine.die()
    taker = await ask(client, engine)
    assert taker.failure is not None
    assert taker.failure.kind is FailureKind.REFUSED
    assert str(engine.port) in taker.failure.detail


async def test_a_host_that_does_not_answer() -> None:
    client = UpstreamClient(connect_timeout_seconds=0.05)
    taker = Taker()
    client.request(("192.0.2.1", 9), GET, taker)  # TEST-NET-1: nobody lives there
    await until(lambda: taker.over)
    assert taker.failure is not None
    assert taker.failure.kind in {FailureKind.CONNECT_TIMEOUT, FailureKind.REFUSED}
    await client.aclose()


async def test_a_kept_connection_closed_meanwhile_is_stale(client: UpstreamClient, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        if len(engine.conversations) == 1:
            await conversation.send(answer({}))
        else:
            conversation.reset()

    engine.script = script
    await ask(client, engine)
    taker = await ask(client, engine)
    assert taker.failure is not None
    assert taker.failure.kind is FailureKind.STALE
    fresh = await ask(client, engine, fresh=True)
    assert fresh.failure is not None
    assert fresh.failure.kind is FailureKind.LOST


async def test_cancelling_tells_the_engine_and_not_the_sink(client: UpstreamClient, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"x", end=False))
        await conversation.gone.wait()

    engine.script = script
    taker = Taker()
    call = client.request(("127.0.0.1", engine.port), GET, taker)
    await until(lambda: taker.pieces)
    call.cancel()
    async with asyncio.timeout(30):
        await engine.conversations[0].gone.wait()
    assert not taker.over
    await until(lambda: client.open_connections == 0)
    # While it still connects:
    early = client.request(("127.0.0.1", engine.port), GET, taker, fresh=True)
    early.cancel()
    await until(lambda: client.open_connections == 0)
    assert not taker.over


async def test_a_paused_call_does_not_read(client: UpstreamClient, engine: ScriptedEngine) -> None:
    sent = 0

    async def script(conversation: Conversation) -> None:
        nonlocal sent
        await conversation.send(HEAD + b"Content-Length: 50000000\r\n\r\n")
        for _ in range(500):
            await conversation.send(b"x" * 100_000)
            sent += 1

    engine.script = script
    taker = Taker()
    call = client.request(("127.0.0.1", engine.port), GET, taker)
    call.pause()
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)  # nothing announces that no more comes
    assert sent < 400
    call.resume()
    await until(lambda: taker.ended)
    assert len(taker.body) == 50_000_000


async def test_fetch_is_a_whole_exchange(engine: ScriptedEngine) -> None:
    says(engine, answer({"a": 1}, 201, x_a="b"))
    response = await fetch("POST", "127.0.0.1", engine.port, "/path", headers=[(b"x-b", b"c")], body=b"data")
    assert (response.status, response.body, response.header(b"x-a")) == (201, b'{"a":1}', b"b")
    (seen,) = engine.conversations
    assert (seen.line, seen.body, seen.headers[b"x-b"]) == (b"POST /path HTTP/1.1", b"data", b"c")


async def test_fetch_has_limits(client: UpstreamClient, engine: ScriptedEngine) -> None:
    async def silent(conversation: Conversation) -> None:
        await conversation.gone.wait()

    engine.script = silent
    # On a busy machine the call may be given up before the engine has heard of it.
    while not engine.conversations:
        with pytest.raises(TimeoutError):
            await client.fetch("GET", "127.0.0.1", engine.port, "/", timeout=0.05)
    async with asyncio.timeout(30):
        await engine.conversations[0].gone.wait()
    says(engine, answer({"a": "x" * 1000}))
    with pytest.raises(UpstreamError, match="longer than 100 bytes"):
        await client.fetch("GET", "127.0.0.1", engine.port, "/", max_bytes=100)
    says(engine, b"nonsense\r\n\r\n")
    with pytest.raises(UpstreamError, match="malformed"):
        await client.fetch("GET", "127.0.0.1", engine.port, "/")


async def test_fetch_replaces_a_stale_connection(client: UpstreamClient, engine: ScriptedEngine) -> None:
    async def script(conversation: Conversation) -> None:
        if len(engine.conversations) == 2:
            conversation.reset()
        else:
            await conversation.send(answer({}))

    engine.script = script
    for _ in range(2):
        assert (await client.fetch("GET", "127.0.0.1", engine.port, "/")).status == 200
