"""The connection: what is one request, where it ends, and what is refused because it could be two."""

import asyncio
import json
import re

import pytest

from nebula_proxy.traffic.plane import Limits
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import STREAM_HEAD, Conversation, ScriptedEngine, answer, chunked, tokens

CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
PATH = b"/v1/chat/completions"


def request(*lines: bytes, body: bytes = CHAT, line: bytes = b"POST " + PATH + b" HTTP/1.1", token: str) -> bytes:
    """A request from its lines; those not given are sound."""
    head = [line, b"Authorization: Bearer " + token.encode()]
    if not any(each.lower().startswith(b"host") for each in lines):
        head.append(b"Host: nebula")
    if not any(each.lower().startswith((b"content-length", b"transfer-encoding")) for each in lines):
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, *lines, b"", b""]) + body


def statuses(raw: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


SMUGGLED = chunked(CHAT)

#: (lines, body) that must be refused; the engine must never see a request.
REFUSED: dict[str, tuple[list[bytes], bytes]] = {
    "both framings": ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], SMUGGLED),
    "two lengths": ([b"Content-Length: %d" % len(CHAT), b"Content-Length: 5"], CHAT),
    "two equal lengths": ([b"Content-Length: %d" % len(CHAT)] * 2, CHAT),
    "a list of lengths": ([b"Content-Length: 5, 5"], CHAT),
    "a signed length": ([b"Content-Length: +5"], CHAT),
    "a hex length": ([b"Content-Length: 0x5"], CHAT),
    "a negative length": ([b"Content-Length: -1"], CHAT),
    "an odd coding": ([b"Transfer-Encoding: gzip, chunked"], SMUGGLED),
    "a coding after chunked": ([b"Transfer-Encoding: chunked, identity"], SMUGGLED),
    "two codings": ([b"Transfer-Encoding: chunked"] * 2, SMUGGLED),
    "a hidden coding": ([b"Transfer-Encoding: xchunked"], SMUGGLED),
    "identity": ([b"Transfer-Encoding: identity"], CHAT),
    "a space before the colon": ([b"Transfer-Encoding : chunked"], SMUGGLED),
    "a folded line": ([b"X-A: 1\r\n 2"], CHAT),
    "a bare LF": ([b"X-A: 1\nX-B: 2"], CHAT),
    "a bare CR": ([b"X-A: 1\rX-B: 2"], CHAT),
    "a NUL": ([b"X-A: 1\x002"], CHAT),
    "an escape": ([b"X-A: \x1b[31m"], CHAT),
    "no name": ([b": 1"], CHAT),
    "an underscore": ([b"X_Role: admin"], CHAT),
    "two hosts": ([b"Host: a", b"Host: b"], CHAT),
    "a host with a path": ([b"Host: a/?x="], CHAT),
    "two keys": ([b"Authorization: Bearer x"], CHAT),
    "a trailer announced": ([b"Transfer-Encoding: chunked", b"Trailer: X-Role"], SMUGGLED),
    "a trailer": ([b"Transfer-Encoding: chunked"], chunked(CHAT, end=False) + b"0\r\nX-Role: admin\r\n\r\n"),
    "a bad chunk size": ([b"Transfer-Encoding: chunked"], b"zz\r\nx\r\n0\r\n\r\n"),
    "a chunk too long": ([b"Transfer-Encoding: chunked"], b"3\r\nabcdef\r\n0\r\n\r\n"),
    "an upgrade": ([b"Connection: upgrade", b"Upgrade: websocket"], CHAT),
    "an upgrade to h2c": ([b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: x"], CHAT),
    "an odd expectation": ([b"Expect: 200-ok"], CHAT),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_requests_with_two_meanings_are_refused(hot: bool, engine: ScriptedEngine, name: str) -> None:
    lines, body = REFUSED[name]
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        raw = await running.exchange(request(*lines, body=body, token=running.token))
        assert statuses(raw) == [400]
        assert b"\r\nconnection: close\r\n" in raw
        assert json.loads(raw.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
    assert engine.conversations == []


TARGETS = [
    b"http://nebula/v1/chat/completions",
    b"//v1/chat/completions",
    b"/v1//chat/completions",
    b"/v1/../v1/chat/completions",
    b"/v1/./chat/completions",
    b"/v1/%2e%2e/v1/chat/completions",
    b"/v1%2fchat/completions",
    b"/v1%5cchat/completions",
    b"/v1\\chat/completions",
    b"*",
    b"nebula:443",
    b"/v1/chat/completions#x",
    b"@evil/v1/chat/completions",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_targets_with_two_meanings_are_refused(hot: bool, engine: ScriptedEngine, target: bytes) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        line = b"POST " + target + b" HTTP/1.1"
        raw = await running.exchange(request(line=line, token=running.token))
        assert statuses(raw) == [400]
    assert engine.conversations == []


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1x", b"ICE/1.0"])
async def test_other_protocols_are_refused(hot: bool, engine: ScriptedEngine, version: bytes) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        raw = await running.exchange(request(line=b"POST " + PATH + b" " + version, token=running.token))
        assert statuses(raw) == [400]
    assert engine.conversations == []


async def test_a_request_without_host_is_refused(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        raw = await running.exchange(request(token=running.token).replace(b"Host: nebula\r\n", b""))
        assert statuses(raw) == [400]


async def test_heads_have_limits(hot: bool, engine: ScriptedEngine) -> None:
    many = [b"X-%d: 1" % number for number in range(200)]
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        for lines in (many, [b"X-A: " + b"x" * 40_000]):
            raw = await running.exchange(request(*lines, token=running.token))
            assert statuses(raw) == [431]
        endless = running.exchange(b"GET /" + b"x" * 100_000)
        assert statuses(await endless) == [431]
    assert engine.conversations == []


async def test_encoded_bodies_are_415(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        raw = await running.exchange(request(b"Content-Encoding: gzip", token=running.token))
        assert statuses(raw) == [415]


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_requests_come_in_pieces(hot: bool, engine: ScriptedEngine, size: int) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        whole = request(b"Connection: close", token=running.token)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for at in range(0, len(whole), size):
            writer.write(whole[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            raw = await reader.read(-1)
        assert statuses(raw) == [200]
        writer.close()
    assert engine.conversations[0].body == CHAT


async def test_a_chunked_request_reaches_the_engine_with_a_length(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        lines = (b"Transfer-Encoding: chunked", b"Connection: close")
        body = chunked(CHAT[:10], CHAT[10:])
        assert statuses(await running.exchange(request(*lines, body=body, token=running.token))) == [200]
    (seen,) = engine.conversations
    assert (seen.body, seen.headers[b"content-length"]) == (CHAT, b"%d" % len(CHAT))
    assert b"transfer-encoding" not in seen.headers


async def test_http_1_0_is_answered_and_closed(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        line = b"POST " + PATH + b" HTTP/1.0"
        raw = await running.exchange(request(line=line, token=running.token))
        assert statuses(raw) == [200]
        streamed = running.request(version="1.0")
        raw = await running.exchange(streamed)
        assert raw.endswith(b"\r\n\r\n" + b"".join(tokens("Hello", " there")))
        assert b"transfer-encoding" not in raw


async def test_expect_is_answered_before_the_body(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        whole = request(b"Expect: 100-continue", b"Connection: close", token=running.token)
        head, body = whole[: -len(CHAT)], whole[-len(CHAT) :]
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(head)
        async with asyncio.timeout(30):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert statuses(await reader.read(-1)) == [200]
        writer.close()


def numbered(running: RunningPlane, number: int, *, path: str = "/v1/chat/completions", close: bool = False) -> bytes:
    body = json.dumps({"model": MODEL, "n": number}).encode()
    headers = {"x-request-id": f"r{number}"} | ({"connection": "close"} if close else {})
    return running.request(body, path=path, headers=headers)


def models(running: RunningPlane, *, close: bool = False) -> bytes:
    connection = b"Connection: close\r\n" if close else b""
    return b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n%b\r\n" % (
        running.token.encode(),
        connection,
    )


async def echo(conversation: Conversation) -> None:
    number = conversation.json["n"]
    # The earlier the request, the later its answer: only order kept on purpose is order.
    await asyncio.sleep(0.05 if number == 0 else 0)
    if number % 2:
        await conversation.send(STREAM_HEAD + chunked(*tokens(f"number {number}")))
    else:
        await conversation.send(answer({"number": number}))


@pytest.mark.parametrize("size", [None, 1, 100])
async def test_pipelined_requests_are_answered_in_order(hot: bool, engine: ScriptedEngine, size: int | None) -> None:
    engine.script = echo
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        wire = b"".join(
            [
                numbered(running, 0),
                models(running),
                numbered(running, 1),
                numbered(running, 2),
                b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
                running.request(b"not json", headers={"x-request-id": "r3"}),
                numbered(running, 4, close=True),
            ]
        )
        pieces = [wire] if size is None else [wire[at : at + size] for at in range(0, len(wire), size)]
        raw = await running.exchange(*pieces)
        assert statuses(raw) == [200, 200, 200, 200, 200, 400, 200]
        places = [raw.index(mark) for mark in (b'"number":0', b'"object":"list"', b"number 1", b'"number":2')]
        places += [raw.index(mark) for mark in (b'{"status":"ok"}', b"invalid_request", b'"number":4')]
        assert places == sorted(places), raw.decode()
        assert len(running.plane.ledger) == 0
    assert sorted(each.json["n"] for each in engine.conversations) == [0, 1, 2, 4]


async def test_a_long_pipeline_is_answered(hot: bool, engine: ScriptedEngine) -> None:
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        wire = running.request(b"not json") * 500 + numbered(running, 0, close=True)
        raw = await running.exchange(wire)
        assert statuses(raw) == [400] * 500 + [200]


async def test_garbage_behind_a_request_does_not_disturb_its_answer(hot: bool, engine: ScriptedEngine) -> None:
    async def slow(conversation: Conversation) -> None:
        await conversation.send(STREAM_HEAD + chunked(tokens("a", "b")[0], end=False))
        await asyncio.sleep(0.05)
        await conversation.send(chunked(*tokens("a", "b")[1:]))

    engine.script = slow
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        raw = await running.exchange(running.request() + b"\x00\x01 garbage\r\n\r\n")
        assert statuses(raw) == [200, 400]  # one after the other, then closed
        assert b"data: [DONE]\n\n\r\n0\r\n\r\nHTTP/1.1 400 " in raw


async def test_the_client_may_leave_behind_a_pipeline(hot: bool, engine: ScriptedEngine) -> None:
    if not hot:
        pytest.skip("uvicorn stops reading behind a pipelined request and notices only when it writes")

    async def wait(conversation: Conversation) -> None:
        await conversation.gone.wait()

    engine.script = wait
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(running.request() + models(running) + running.request())
        await until(lambda: engine.conversations)
        writer.close()
        async with asyncio.timeout(30):
            await engine.conversations[0].gone.wait()
        await until(lambda: len(running.plane.ledger) == 0)


# Deadlines


async def test_slow_requests_are_refused_and_idle_connections_closed(hot: bool, engine: ScriptedEngine) -> None:
    limits = Limits(header_seconds=100, body_grace_seconds=50, idle_seconds=650)
    whole_head = b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"
    async with running_plane(model(endpoint("m-r0", engine.port)), hot_path=hot, limits=limits) as running:
        connections = running.server.server_state.connections
        for data, after, status in (
            (b"POST " + PATH + b" HTTP/1.1\r\nHost:", 101, [408]),
            (whole_head, 51, [408]),
            (b"", 651, []),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(data)
            await until(lambda: connections)
            (connection,) = connections
            if data:
                await until(lambda connection=connection: connection.phase != 0)  # type: ignore[misc]
            now = asyncio.get_running_loop().time()
            connection.expire(now)
            assert not connection.transport.is_closing()
            connection.expire(now + after)
            async with asyncio.timeout(30):
                raw = await reader.read(-1)
            assert statuses(raw) == status
            writer.close()
            await until(lambda: not connections)
    assert engine.conversations == []
