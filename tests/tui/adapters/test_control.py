"""The door to the Control API on real sockets: answers, refusals, streams, deaths and freezes."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from nebula_core.errors import NebulaError
from nebula_core.records.views import WatchDelta, WatchSnapshot
from nebula_tui.adapters.control import (
    Alive,
    Connected,
    ControlClient,
    Garbled,
    Lost,
    NotAllowed,
    NotFound,
    Refused,
    Unreachable,
    WatchMessage,
)
from tests.support.fleet import FakeControl, small_fleet
from tests.tui.adapters.server import Call, refusing_port, serving


def refusal(message: str, **more: str) -> str:
    return json.dumps({"error": {"message": message, "type": "t", "code": "c", **more}})


def event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"


async def take(messages: AsyncIterator[WatchMessage], count: int) -> list[WatchMessage]:
    async with asyncio.timeout(60):
        return [await anext(messages) for _ in range(count)]


async def test_questions_carry_the_key_and_decode_the_answer() -> None:
    async def handler(call: Call) -> None:
        if call.path == "/api/v1/whoami":
            await call.answer(200, '{"name":"ops","role":"admin","key_id":"k"}')
        else:
            items = [view.model_dump(mode="json") for view in small_fleet().nodes]
            page = {"items": items[:1], "next": "n1"} if "cursor" not in call.path else {"items": items[1:]}
            await call.answer(200, json.dumps(page))

    async with serving(handler) as server:
        client = ControlClient(server.url + "/", "nbl_a_b")
        assert (await client.whoami()).role == "admin"
        assert [view.id for view in await client.nodes()] == ["sim-a", "sim-b"]
        assert server.calls[0].headers["authorization"] == "Bearer nbl_a_b"
        await client.aclose()


async def test_actions_are_dry_or_carry_a_key_against_repeats() -> None:
    plan = await FakeControl(small_fleet()).scale("demo", 3, dry_run=True)

    async def handler(call: Call) -> None:
        await call.answer(200, plan.to_json())

    async with serving(handler) as server:
        client = ControlClient(server.url, "k")
        shown = await client.scale("demo", 3, dry_run=True)
        assert shown.plan.changes[0].replica == "demo-r3"
        await client.scale("demo", 3, dry_run=False)
        await client.drain("node", "sim-a", dry_run=True)
        await client.restart("deployment", "demo", dry_run=True)
        await client.cordon("sim-a", dry_run=True)
        await client.uncordon("sim-a", dry_run=False)
        dry, real, *others = server.calls
        assert (dry.method, dry.path) == ("POST", "/api/v1/deployments/demo/scale?dry_run=1")
        assert json.loads(dry.body) == {"replicas": 3}
        assert "idempotency-key" not in dry.headers
        assert real.path == "/api/v1/deployments/demo/scale"
        assert len(real.headers["idempotency-key"]) == 32
        assert [call.path for call in others] == [
            "/api/v1/nodes/sim-a/drain?dry_run=1",
            "/api/v1/deployments/demo/restart?dry_run=1",
            "/api/v1/nodes/sim-a/cordon?dry_run=1",
            "/api/v1/nodes/sim-a/uncordon",
        ]
        await client.aclose()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, refusal("who are you"), NotAllowed, "check the key"),
        (403, refusal("viewer may not", hint="ask li"), NotAllowed, "ask li"),
        (404, refusal("no such node"), NotFound, "no such node"),
        (409, refusal("changed meanwhile", hint="read it again"), Refused, "read it again"),
        (503, refusal("no store"), Unreachable, "no store"),
        (500, "<html>oops</html>", Refused, "is this the Control API's address?"),
        (200, "not json", Garbled, "same version"),
    ],
)
async def test_refusals_become_errors_with_a_next_step(
    status: int, body: str, kind: type[NebulaError], words: str
) -> None:
    async def handler(call: Call) -> None:
        await call.answer(status, body)

    async with serving(handler) as server:
        client = ControlClient(server.url, None)
        with pytest.raises(kind, match=words.replace("?", r"\?")):
            await client.whoami()
        await client.aclose()


async def test_nobody_there_and_nobody_answering() -> None:
    with refusing_port() as port:
        client = ControlClient(f"http://127.0.0.1:{port}", None)
        with pytest.raises(Unreachable, match=r"refuses the connection\. is the control process running"):
            await client.whoami()
        await client.aclose()

    async def handler(_: Call) -> None:
        await asyncio.Event().wait()

    async with serving(handler) as server:
        slow = ControlClient(server.url, None, timeout_seconds=0.1)
        with pytest.raises(Unreachable, match="does not answer in time"):
            await slow.whoami()
        await slow.aclose()


async def test_the_watch_gives_snapshot_deltas_and_comes_back_after_a_death() -> None:
    opened = 0

    async def handler(call: Call) -> None:
        nonlocal opened
        opened += 1
        await call.stream()
        await call.say(event("snapshot", small_fleet().to_json()) + ": keepalive\n\n")
        if opened == 1:
            whole = event("delta", WatchDelta(gone_nodes=("sim-a",)).to_json())
            await call.say(whole[:20])
            await call.say(whole[20:])
            call.cut()
        else:
            await asyncio.Event().wait()

    async with serving(handler) as server:
        client = ControlClient(server.url, "k", probe_after_seconds=60)
        watch = client.watch()
        found: list[WatchMessage] = []
        async with asyncio.timeout(60):
            while sum(isinstance(message, WatchSnapshot) for message in found) < 2:
                found.append(await anext(watch))
        await watch.aclose()
        await client.aclose()
    kinds = [type(message) for message in found if not isinstance(message, Alive)]
    assert kinds == [Connected, WatchSnapshot, WatchDelta, Lost, Connected, WatchSnapshot]
    lost = next(message for message in found if isinstance(message, Lost))
    assert isinstance(lost.error, Unreachable)
    assert lost.retry_seconds <= 0.25


async def test_a_line_separator_inside_a_string_does_not_cut_an_event() -> None:
    told = small_fleet().model_copy(
        update={"events": (small_fleet().events[0].model_copy(update={"message": "a\u2028b"}),)}
    )

    async def handler(call: Call) -> None:
        await call.stream()
        await call.say(event("snapshot", told.to_json()))
        await asyncio.Event().wait()

    async with serving(handler) as server:
        client = ControlClient(server.url, "k", probe_after_seconds=60)
        watch = client.watch()
        _, snapshot = await take(watch, 2)
        assert isinstance(snapshot, WatchSnapshot)
        assert snapshot.events[0].message == "a\u2028b"
        await watch.aclose()
        await client.aclose()


async def test_silence_with_an_answer_is_life_and_without_one_is_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    # An answer that comes is waited for, however slow the machine; the one that never comes, only a moment.
    monkeypatch.setattr("nebula_tui.adapters.control.PROBE_SECONDS", 60.0)
    answering = True

    async def handler(call: Call) -> None:
        if call.path.startswith("/api/v1/watch"):
            await call.stream()
            await call.say(event("snapshot", small_fleet().to_json()))
            await asyncio.Event().wait()
        elif answering:
            await call.answer(401, refusal("any answer is one"))
        else:
            await asyncio.Event().wait()  # frozen: the socket is open, nobody answers

    async with serving(handler) as server:
        client = ControlClient(server.url, "k", probe_after_seconds=0.05)
        watch = client.watch()
        assert isinstance(await anext(watch), Connected)
        async with asyncio.timeout(60):
            while not isinstance(message := await anext(watch), WatchSnapshot):
                assert isinstance(message, Alive)  # asked for before the snapshot came
        assert [type(message) for message in await take(watch, 2)] == [Alive, Alive]
        answering = False
        monkeypatch.setattr("nebula_tui.adapters.control.PROBE_SECONDS", 0.1)
        async with asyncio.timeout(60):
            while not isinstance(message := await anext(watch), Lost):
                assert isinstance(message, Alive)
        assert "does not answer in time" in str(message.error)
        await watch.aclose()
        await client.aclose()


async def test_the_watch_backs_off_and_tells_why() -> None:
    with refusing_port() as port:
        client = ControlClient(f"http://127.0.0.1:{port}", "k")
        watch = client.watch()
        first, second = await take(watch, 2)
        assert isinstance(first, Lost)
        assert isinstance(second, Lost)
        assert (first.retry_seconds, second.retry_seconds) == (0.25, 0.5)
        await watch.aclose()
        await client.aclose()


async def test_a_revoked_key_is_told_as_such() -> None:
    async def handler(call: Call) -> None:
        await call.answer(401, refusal("the API key is revoked"))

    async with serving(handler) as server:
        client = ControlClient(server.url, "k")
        watch = client.watch()
        (lost,) = await take(watch, 1)
        assert isinstance(lost, Lost)
        assert isinstance(lost.error, NotAllowed)
        await watch.aclose()
        await client.aclose()


async def test_logs_follow_end_and_fail() -> None:
    async def handler(call: Call) -> None:
        await call.stream()
        await call.say(event("line", '{"at":1.0,"source":"demo-r1","text":"hello","gap":3}') + ": still here\n\n")
        if "demo-r1" in call.path:
            await call.say(event("end", '{"reason":"the replica is gone"}'))
        else:
            await call.say(event("error", refusal("the store went away", hint="wait")))

    async with serving(handler) as server:
        client = ControlClient(server.url, "k")
        lines = client.logs("demo-r1", tail=5)
        line = await anext(lines)
        assert (line.text, line.gap) == ("hello", 3)
        with pytest.raises(NotFound, match="demo-r1 is gone"):
            await anext(lines)
        assert server.calls[0].path == "/api/v1/replicas/demo-r1/logs?tail=5&follow=1"
        other = client.logs("demo-r2", follow=False)
        await anext(other)
        with pytest.raises(Refused, match=r"the store went away\. wait"):
            await anext(other)
        await client.aclose()


async def test_events_come_oldest_first() -> None:
    async def handler(call: Call) -> None:
        items = [view.model_dump(mode="json") for view in reversed(small_fleet().events)]
        await call.answer(200, json.dumps({"items": items}))

    async with serving(handler) as server:
        client = ControlClient(server.url, "k")
        found = await client.events(count=5)
        assert [one.id for one in found] == [one.id for one in small_fleet().events]
        await client.aclose()
