"""The simulated engine's HTTP: framing, keep-alive, and the clients who do it differently."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nebula_agent.simulator.http_server import Exchange, HttpServer


async def _application(exchange: Exchange) -> None:
    if exchange.request.path == "/stream":
        exchange.start_stream()
        await exchange.send(b"one")
        await exchange.send(b"two")
        exchange.end_stream()
    elif exchange.request.path == "/half":
        exchange.start_stream()
        await exchange.send(b"one")
    elif exchange.request.path == "/wait":
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
    else:
        exchange.reply(200, exchange.request.path.encode() + b" " + exchange.request.body, "text/plain")


left = asyncio.Event()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    left.clear()
    server = HttpServer(_application)
    yield await server.listen("127.0.0.1", 0)
    server.close_listener()
    await server.wait_closed(1.0)


async def talk(port: int, data: bytes) -> str:
    """Sends, and reads until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return (await asyncio.wait_for(reader.read(), 60)).decode()
    finally:
        writer.close()
        await writer.wait_closed()


CLOSE = b"Host: x\r\nConnection: close\r\n"


async def test_requests_in_a_row_on_one_connection_are_answered_in_order(port):
    first = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(20))
    text = await talk(port, first + b"GET /last HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert text.count("HTTP/1.1 200 OK") == 21
    places = [text.index(f"/{number} ") for number in range(20)] + [text.index("/last")]
    assert places == sorted(places)


async def test_a_body_in_chunks_and_one_that_waits_for_leave(port):
    chunked = b"POST /a HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert (await talk(port, chunked)).endswith("/a abcde")
    waiting = b"POST /b HTTP/1.1\r\n" + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    text = await talk(port, waiting + b"ok")
    assert text.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


async def test_nonsense_is_refused(port):
    text = await talk(port, b"NONSENSE\r\n\r\n")
    assert text.startswith("HTTP/1.1 400 Bad Request")
    assert text.endswith("Invalid HTTP request received.")


async def test_streams_are_framed_and_a_half_one_does_not_look_whole(port):
    whole = await talk(port, b"GET /stream HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert whole.endswith("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    half = await talk(port, b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
    assert half.endswith("3\r\none\r\n")


async def test_the_client_leaving_cancels_its_request(port):
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    writer.close()
    await asyncio.wait_for(left.wait(), 60)
    await writer.wait_closed()


async def test_a_head_request_gets_no_body(port):
    text = await talk(port, b"HEAD /x HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert "content-length: 3" in text
    assert text.endswith("\r\n\r\n")
