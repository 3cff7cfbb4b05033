"""Heads that come again on a connection go past the parser; no client may see a difference."""

import asyncio
import random

import pytest

from nebula_proxy.traffic.connection import StrictProtocol
from nebula_proxy.traffic.plane import Limits
from tests.contracts.data_plane.test_oracle import parsed, request, script
from tests.support.data_plane import RunningPlane, endpoint, model, running_plane
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, completion

ROUNDS = 60


async def one_after_another(running: RunningPlane, requests: list[list[bytes]]) -> list[bytes]:
    """The answers to requests of which each is sent, in pieces, when the one before is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    found = []
    try:
        async with asyncio.timeout(60):
            for pieces in requests:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                head = await reader.readuntil(b"\r\n\r\n")
                if b"transfer-encoding: chunked" in head:
                    body = await reader.readuntil(b"\r\n0\r\n\r\n")
                else:
                    body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                found.append(head + body)
                if b"connection: close" in head:
                    break
    except asyncio.IncompleteReadError:
        found.append(b"closed")
    finally:
        writer.close()
    return found


async def test_what_a_connection_says_again_and_again_is_answered_as_by_the_plain_route() -> None:
    dice = random.Random(11)
    async with ScriptedEngine(script) as engine:
        view = model(endpoint("m-r0", engine.port))
        async with running_plane(view) as hot, running_plane(view, hot_path=False) as plain:
            plain.plane.authenticator.update(hot.plane.authenticator._keys)
            for number in range(ROUNDS):
                drawn = [request(dice, hot.token) for _ in range(3)] * 2
                dice.shuffle(drawn)
                cuts = [dice.choice([0, dice.randrange(1, len(raw)), raw.find(b"\r\n\r\n") + 4]) for raw in drawn]
                pieces = [[raw[:cut], raw[cut:]] for raw, cut in zip(drawn, cuts, strict=True)]
                one = await one_after_another(hot, pieces)
                other = await one_after_another(plain, pieces)
                assert list(map(parsed, one)) == list(map(parsed, other)), number


class Seen:
    """An engine's words, and the bodies it was asked with."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, conversation: Conversation) -> None:
        self.bodies.append(conversation.body)
        await conversation.send(answer(completion("x")))


async def test_only_the_first_of_the_same_heads_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parses: list[bytes] = []
    before = StrictProtocol.data_received

    def counted(self: StrictProtocol, data: bytes) -> None:
        parses.append(data)
        before(self, data)

    seen = Seen()
    async with ScriptedEngine(seen) as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        monkeypatch.setattr(StrictProtocol, "data_received", counted)
        bodies = [b'{"model":"m","messages":[],"user":"%b"}' % (b"x" * size) for size in (1, 70, 9, 1, 500)]
        raw = [running.request(body) for body in bodies]
        answers = await one_after_another(running, [[each] for each in raw])
        assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * 5
        assert parses == raw[:1]
        assert seen.bodies == bodies


async def test_a_known_head_before_a_body_that_is_too_long_is_refused() -> None:
    async with (
        ScriptedEngine(Seen()) as engine,
        running_plane(model(endpoint("m-r0", engine.port)), limits=Limits(max_body_bytes=100)) as running,
    ):
        short = running.request(b'{"model":"m","messages":[]}')
        long = running.request(b'{"model":"m","messages":[],"user":"%b"}' % (b"x" * 100))
        answers = await one_after_another(running, [[short], [short], [long]])
        assert [answer[9:12] for answer in answers] == [b"200", b"200", b"413"]


async def test_what_comes_behind_a_known_head_and_its_body_is_answered_in_its_turn() -> None:
    seen = Seen()
    async with ScriptedEngine(seen) as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        bodies = [b'{"model":"m","messages":[],"user":"%d"}' % number for number in range(4)]
        first, second, third, last = (running.request(body) for body in bodies)
        last = last.replace(b"host:", b"connection: close\r\nhost:")
        await one_after_another(running, [[first]])
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(first)
        await reader.readuntil(b"\r\n\r\n")
        # The head is known, its body comes late and brings the next request along.
        writer.write(second[:-5])
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(second[-5:] + third + last)
        async with asyncio.timeout(60):
            rest = await reader.read(-1)
        writer.close()
        assert rest.count(b"HTTP/1.1 200 OK") == 3
        assert seen.bodies[1:] == bodies


async def test_a_known_call_is_not_taken_for_another_that_came_before_it() -> None:
    """Two in one read: nothing is remembered of them, and what follows is told apart by its own path."""
    seen = Seen()
    async with ScriptedEngine(seen) as engine, running_plane(model(endpoint("m-r0", engine.port))) as running:
        cold = running.request(b'{"model":"m"}', path="/v1/nothing")
        hot = running.request(b'{"model":"m","messages":[]}')
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(cold + hot + cold + hot)
        async with asyncio.timeout(60):
            for _ in range(4):
                await reader.readuntil(b"\r\n\r\n")
            writer.write(cold.replace(b"host:", b"connection: close\r\nhost:"))
            rest = await reader.read(-1)
        writer.close()
        assert b"HTTP/1.1 404" in rest
        assert len(seen.bodies) == 2
