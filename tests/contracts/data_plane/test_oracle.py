"""The hot path against the plain ASGI route: the same bytes in, cut anywhere, give the same answers."""

import asyncio
import random
import re

import pytest

from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane
from tests.support.scripted_engine import STREAM_HEAD as STREAM
from tests.support.scripted_engine import Conversation, ScriptedEngine, answer, chunked, completion, tokens

ROUNDS = 150
#: What differs between two runs of anything, and between our two ways to say the same.
_DIFFERS = re.compile(
    rb"(?im)^(date|x-request-id|x-nebula-overhead-ms|x-nebula-decision|connection|transfer-encoding|content-length): .*\r\n"
)
_PHRASE = re.compile(rb"(?m)^(HTTP/1\.[01] \d{3}) [^\r]*")


async def script(conversation: Conversation) -> None:
    if not conversation.body.startswith(b"{"):
        await conversation.send(answer({"error": {"message": "what?"}}, 400))
    elif conversation.json.get("stream"):
        await conversation.send(STREAM + chunked(*tokens("a", "b\u00e9", "c")))
    else:
        await conversation.send(answer(completion("x" * conversation.json.get("max_tokens", 3))))


def request(dice: random.Random, token: str, *, last: bool = False) -> bytes:
    """Only the `last` one ends its connection: whatever came behind it would be answered by a reset."""
    path = dice.choice(
        [b"/v1/chat/completions"] * 6
        + [b"/v1/completions", b"/v1/embeddings", b"/v1/chat/completions?a=b", b"/v1/nothing"]
    )
    body = dice.choice(
        [
            b'{"model":"m","messages":[],"stream":true}',
            b'{"model":"m","messages":[],"max_tokens":%d}' % dice.randrange(1, 300),
        ]
        * 3
        + [b'{"model":"nobody"}', b"{", b"[]", b'{"model":5}']
    )
    version = b"1.0" if last and dice.random() < 0.3 else b"1.1"
    headers = [b"host: n", b"content-type: application/json"]
    if dice.random() < 0.9:
        headers.append(b"authorization: Bearer " + token.encode())
    if dice.random() < 0.1:
        headers.append(dice.choice([b"x_y: z", b"x-nebula-strategy: none", b"x-nebula-priority: 99"]))
    method = dice.choice([b"POST"] * 9 + [b"GET"])
    if dice.random() < 0.2 and version == b"1.1":
        headers.append(b"transfer-encoding: chunked")
        cut = dice.randrange(len(body))
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        headers.append(b"content-length: %d" % len(body))
        framed = body
    return b"%b %b HTTP/%b\r\n%b\r\n\r\n%b" % (method, path, version, b"\r\n".join(headers), framed)


async def answers(running: RunningPlane, pieces: list[bytes], last: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        async with asyncio.timeout(60):
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(last)
                return await reader.read(-1)
            except ConnectionError:
                return b""
    finally:
        writer.close()


def parsed(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Heads without what differs, and bodies without their framing, one answer after another."""
    found = []
    while raw:
        head, separator, rest = raw.partition(b"\r\n\r\n")
        assert separator, raw
        lower = head.lower() + b"\r\n"
        if b"100 continue" in lower:
            raw = rest
            continue
        if b"transfer-encoding: chunked" in lower:
            body = b""
            while True:
                size, _, rest = rest.partition(b"\r\n")
                length = int(size, 16)
                body, rest = body + rest[:length], rest[length + 2 :]
                if not length:
                    break
        elif (length_of := re.search(rb"content-length: (\d+)", lower)) is not None:
            length = int(length_of[1])
            body, rest = rest[:length], rest[length:]
        else:
            body, rest = rest, b""
        status, *lines = _PHRASE.sub(rb"\1", _DIFFERS.sub(b"", head + b"\r\n")).split(b"\r\n")
        found.append((b"\r\n".join([status, *sorted(lines)]), re.sub(rb"req-[0-9a-f-]+", b"req", body)))
        raw = rest
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_both_ways_say_the_same(engine: ScriptedEngine, seed: int) -> None:
    engine.script = script
    view = model(endpoint("m-r0", engine.port))
    async with running_plane(view) as hot, running_plane(view, hot_path=False) as plain:
        dice = random.Random(seed)
        kinds: set[bytes] = set()
        for _ in range(ROUNDS):
            shape = dice.getrandbits(64)
            seen = []
            for running in (hot, plain):
                same = random.Random(shape)
                data = b"".join(request(same, running.token) for _ in range(same.choice([1, 1, 2, 4])))
                last = request(same, running.token, last=True)
                last = last.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
                cuts = sorted(same.randrange(len(data)) for _ in range(same.randrange(6)))
                ends = [*cuts, len(data)]
                pieces = [data[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
                seen.append(parsed(await answers(running, pieces, last)))
            assert seen[0] == seen[1]
            assert seen[0]
            kinds |= {head[:12] for head, _ in seen[0]}
        assert {b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 404"} <= kinds
        assert MODEL == "m"
