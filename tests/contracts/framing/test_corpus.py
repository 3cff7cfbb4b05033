"""The corpus against the proxy, with each of four servers behind it and two in front: nothing ambiguous passes (GOALS R12).

*Behind*: what reaches the server behind is exactly the bodies of the case, and the next request on the same connection
is what it was sent as. *In front*: for every 200 a client reads, the engine saw one request, and nothing else.
"""

import asyncio
import contextlib
import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nebula_core.wire.openai import Facts, read_facts
from nebula_proxy.decisions.calls import CALLS
from tests.contracts.framing.corpus import CASES, ONE, TAIL, TAIL_BODY, TOKEN, TWO, Case, request
from tests.support.behind import Recorder, missing, recorder, relay
from tests.support.data_plane import RunningPlane, endpoint, model, running_plane

CANARY_BODY = b'{"model":"m","messages":[{"role":"user","content":"canary"}]}'


def test_the_corpus_is_large_and_its_names_are_its_own() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)


@contextlib.asynccontextmanager
async def chain(behind: str, folder: Path, *, hot: bool) -> AsyncIterator[tuple[RunningPlane, Recorder]]:
    """The proxy, `behind` it, and a recorder at the end."""
    async with contextlib.AsyncExitStack() as stack:
        end = await stack.enter_async_context(recorder("httptools" if behind == "uvicorn-httptools" else "h11"))
        port = end.port
        if not behind.startswith("uvicorn"):
            port = await stack.enter_async_context(relay(behind, port, folder / behind))
        view = model(endpoint("m-r0", port))
        running = await stack.enter_async_context(running_plane(view, hot_path=hot))
        yield running, end


async def converse(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            writer.write(data)
            await writer.drain()
            return await reader.read(-1)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


def statuses(raw: bytes) -> list[int]:
    """Of the final answers."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw) if found != b"100"]


def problems(case: Case, raw: bytes, end: Recorder) -> list[str]:
    expected = [*case.statuses, *([200] if case.goes_on else [])]
    bodies = [*case.bodies, *([TAIL_BODY] if case.goes_on else [])]
    found = []
    if statuses(raw) != expected:
        found.append(f"answers {statuses(raw)}, expected {expected}")
    if [seen.body for seen in end.seen] != bodies:
        found.append(f"the engine saw {[seen.body[:40] for seen in end.seen]}")
    found += [f"the engine saw {seen.method} {seen.path}" for seen in end.seen if not sound(seen.method, seen.path)]
    foreign = {name for seen in end.seen for name, _ in seen.headers} - {
        b"host", b"content-type", b"content-length", b"x-request-id", b"x-forwarded-for", b"connection",
    }  # fmt: skip
    if foreign:
        found.append(f"the engine saw the headers {foreign}")
    return found


def sound(method: str, path: str) -> bool:
    return (method, path) == ("POST", "/v1/chat/completions")


async def canary(running: RunningPlane, end: Recorder) -> str | None:
    """What is wrong with the next request; None when it is as it was sent, on the connection of the one before."""
    before = end.seen[-1].peer if end.seen else None
    end.seen.clear()
    lines = (b"Connection: close", b"X-Request-Id: canary")
    raw = await converse(running.port, signed(request(*lines, body=CANARY_BODY), running))
    seen = [(each.body, each.request_id) for each in end.seen]
    if statuses(raw) != [200] or b'{"id": "canary"' not in raw:
        return f"the canary got {raw[-200:]!r}"
    if seen != [(CANARY_BODY, "canary")]:
        return f"the canary was seen as {seen}"
    if before is not None and end.seen[0].peer != before:
        return "the canary came on another connection"
    return None


def signed(data: bytes, running: RunningPlane) -> bytes:
    return data.replace(TOKEN, running.token.encode())


@pytest.mark.parametrize("hot", [True, False], ids=["hot", "asgi"])
@pytest.mark.parametrize("behind", ["uvicorn-h11", "uvicorn-httptools", "nginx", "haproxy"])
async def test_nothing_ambiguous_is_forwarded(behind: str, hot: bool, tmp_path: Path) -> None:
    if not behind.startswith("uvicorn") and (reason := missing(behind)):
        pytest.skip(reason)
    wrong: dict[str, list[str]] = {}
    async with chain(behind, tmp_path, hot=hot) as (running, end):
        for case in CASES:
            if case.waits:
                continue
            end.seen.clear()
            raw = await converse(running.port, signed(case.data + TAIL, running))
            found = problems(case, raw, end)
            found += [problem] if (problem := await canary(running, end)) else []
            if found:
                wrong[case.name] = found
        assert len(running.plane.ledger) == 0
    assert wrong == {}


@pytest.mark.parametrize("hot", [True, False], ids=["hot", "asgi"])
@pytest.mark.parametrize("case", [case for case in CASES if case.waits], ids=lambda case: case.name)
async def test_what_is_incomplete_reaches_nobody(case: Case, hot: bool, tmp_path: Path) -> None:
    async with chain("uvicorn-h11", tmp_path, hot=hot) as (running, end):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(signed(case.data + TAIL, running))
        assert await canary(running, end) is None  # by then it has been read
        assert len(end.seen) == 1
        (connection,) = [each for each in running.server.server_state.connections if each.phase == 2]
        connection.expire(asyncio.get_running_loop().time() + 3600)
        async with asyncio.timeout(60):
            assert statuses(await reader.read(-1)) == [408]
        writer.close()
        assert len(end.seen) == 1


@pytest.mark.parametrize("front", ["nginx", "haproxy"])
async def test_a_server_in_front_and_the_proxy_agree(front: str, tmp_path: Path) -> None:
    if reason := missing(front):
        pytest.skip(reason)
    wrong: dict[str, list[str]] = {}
    async with chain("uvicorn-h11", tmp_path, hot=True) as (running, end), relay(front, running.port, tmp_path) as port:
        for case in CASES:
            end.seen.clear()
            raw = await converse_through(port, signed(case.data, running))
            found = agreement(case, raw, end)
            end.seen.clear()
            lines = (b"Connection: close", b"X-Request-Id: canary")
            raw = await converse(port, signed(request(*lines, body=CANARY_BODY), running))
            if statuses(raw) != [200] or [each.request_id for each in end.seen] != ["canary"]:
                found.append(f"the canary got {raw[-200:]!r} and was seen as {[each.body for each in end.seen]}")
            if found:
                wrong[case.name] = found
    assert wrong == {}


#: Rounds per kind of server side; a long run is `NEBULA_FRAMING_ROUNDS=50000`.
ROUNDS = int(os.environ.get("NEBULA_FRAMING_ROUNDS", "400"))
_CUTS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"0",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n\r\n",
    b";",
)


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A few bytes or pieces changed, doubled, dropped or put in."""
    raw = bytearray(data)
    for _ in range(dice.randint(1, 2)):
        at = dice.randrange(len(raw))
        match dice.randrange(5):
            case 0:
                raw[at] = dice.randrange(256)
            case 1:
                del raw[at : at + dice.randint(1, 8)]
            case 2:
                raw[at:at] = dice.choice(_CUTS)
            case 3:
                raw[at:at] = raw[at : at + dice.randint(1, 40)]
            case _:
                lines = bytes(raw).split(b"\r\n")
                dice.shuffle(lines[1:])
                lines.insert(dice.randrange(len(lines)), dice.choice(lines))
                raw = bytearray(b"\r\n".join(lines))
        raw = raw or bytearray(b"x")
    return bytes(raw)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("hot", [True, False], ids=["hot", "asgi"])
async def test_whatever_comes_the_engine_sees_sound_requests_alone(hot: bool, tmp_path: Path) -> None:
    dice = random.Random(None if "NEBULA_FRAMING_ROUNDS" in os.environ else 11)
    short = [case for case in CASES if len(case.data) < 3000]
    sound_ones = [case for case in short if case.bodies]
    wrong = []
    served = 0
    async with chain("uvicorn-h11", tmp_path, hot=hot) as (running, end):
        for _ in range(ROUNDS):
            data = signed(mutated(dice.choice(dice.choice((short, sound_ones))).data, dice), running)
            end.seen.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(data)
            lines = (b"Connection: close", b"X-Request-Id: canary")
            raw = await converse(running.port, signed(request(*lines, body=CANARY_BODY), running))
            writer.close()
            canaries = [each for each in end.seen if each.request_id == "canary"]
            others = [each for each in end.seen if each.request_id != "canary"]
            served += len(others)
            # What an engine gets was readable as JSON with a model, and was framed as one body.
            bad = [each for each in others if each.method != "POST" or each.path.encode() not in CALLS]
            bad += [each for each in others if not readable(each.body)]
            if bad or statuses(raw) != [200] or [each.body for each in canaries] != [CANARY_BODY]:
                wrong.append((data, bad, raw))
        statuses_seen = {*running.plane.meters.nobody.statuses, *running.plane.meters.of("m").statuses}
    assert wrong == []
    assert max(statuses_seen) < 500
    assert served > ROUNDS // 20


def readable(body: bytes) -> bool:
    return isinstance(read_facts(body), Facts)


async def converse_through(port: int, data: bytes) -> bytes:
    """A relay may wait for more where we refuse: the end of what a client says is said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = b""
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(30):
            while piece := await reader.read(65536):
                raw += piece
    except OSError:
        pass  # the relay has closed it already
    finally:
        writer.close()
    return raw


def agreement(case: Case, raw: bytes, end: Recorder) -> list[str]:
    found = [f"the engine saw {seen.method} {seen.path}" for seen in end.seen if not sound(seen.method, seen.path)]
    # Where the proxy would have closed behind the first, the relay opens another connection for the second.
    allowed = {*case.bodies, *(body for body in (ONE, TWO) if body in case.data)}
    if not case.bodies:
        # The relay may have made one meaning of it, which is then sound; it may not have made two.
        if len(end.seen) > 1:
            found.append(f"the engine saw {len(end.seen)} requests")
    elif not {seen.body for seen in end.seen} <= allowed:
        found.append(f"the engine saw {[seen.body[:40] for seen in end.seen]}")
    served = raw.count(b'{"id": ')
    if served > len(end.seen):
        found.append(f"{served} answers of an engine that saw {len(end.seen)} requests")
    return found
