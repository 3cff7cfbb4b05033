"""Events, the audit chain, sampled requests, log lines and the agents' claims."""

import asyncio

import pytest

from nebula_core.records.decision import DecisionRecord
from nebula_core.records.event import Audit, Event
from nebula_core.records.inflight import CommandAnswer, InflightReport, ProxyCommand
from nebula_core.records.views import LogLine
from nebula_core.security.chain import first_break
from nebula_core.store import keys
from nebula_core.store.claims import Claim
from nebula_core.store.store import Store


def event(message: str) -> Event:
    return Event(kind="test", object="replica/chat-r1", message=message, actor="me", at=1.0)


def entry(call: str) -> Audit:
    return Audit(
        stage="intent",
        call=call,
        actor="me",
        role="admin",
        object="o",
        request_id="r",
        at=1.5,
        detail={"b": 1, "a": [2]},
    )


async def test_events_come_back_in_order_by_page(store: Store) -> None:
    ids = [await store.append_event(event(f"e{n}")) for n in range(10)]
    newest = await store.read_events(count=3)
    assert [found.message for found in newest] == ["e7", "e8", "e9"]
    assert [found.id for found in newest] == ids[7:]
    older = await store.read_events(count=3, before=newest[0].id)
    assert [found.message for found in older] == ["e4", "e5", "e6"]
    assert [found.message for found in await store.read_events(after=ids[7])] == ["e8", "e9"]
    assert [found.message for found in await store.read_events(after=ids[1], before=ids[4])] == ["e2", "e3"]


async def test_following_events_misses_none(store: Store) -> None:
    await store.append_event(event("before"))
    seen: list[str] = []

    async def follow() -> None:
        async for found in store.follow_events():
            seen.append(found.message)
            if len(seen) == 30:
                return

    async with asyncio.timeout(10):
        task = asyncio.create_task(follow())
        number = 0
        while not seen:
            # It may not listen yet: whatever it hears first, from there on it hears all.
            await store.append_event(event(str(number)))
            number += 1
        for following in range(number, number + 40):
            if task.done():
                break
            await store.append_event(event(str(following)))
        await task
    first = int(seen[0])
    assert seen == [str(n) for n in range(first, first + 30)]


async def test_unreadable_entries_are_left_out(store: Store) -> None:
    await store.append_event(event("one"))
    await store._commands.ask("XADD", keys.EVENTS, "*", "json", "{")
    await store._commands.ask("XADD", keys.EVENTS, "*", "other", "x")
    await store.append_event(event("two"))
    assert [found.message for found in await store.read_events()] == ["one", "two"]


async def test_the_audit_chain_holds_with_several_writers(store: Store) -> None:
    await asyncio.gather(*(store.append_audit(entry(f"call-{n}")) for n in range(12)))
    found = await store.read_audit()
    assert len(found) == 12
    assert {one.call for one in found} == {f"call-{n}" for n in range(12)}
    assert found[0].previous == ""
    assert first_break(found) is None
    assert first_break([*found[:4], *found[5:]]) == 4
    assert first_break([*found[:4], found[4].model_copy(update={"actor": "other"}), *found[5:]]) == 4
    assert first_break([*found[:4], found[5], found[4], *found[6:]]) == 4


def request(number: int, name: str | None = None) -> DecisionRecord:
    return DecisionRecord(id=name or f"req-{number}", proxy="p", at=float(number), path="/v1/chat/completions")


async def test_requests_are_kept_in_a_bounded_stream_and_found_by_id(store: Store) -> None:
    assert await store.find_request("req-1") is None
    await store.append_requests([])
    await store.append_requests([request(number) for number in range(700)])
    await store.append_requests([request(9000, "req-3")])
    newest = await store.read_requests(count=2)
    assert [one.id for one in newest] == ["req-699", "req-3"]
    assert [one.id for one in await store.read_requests(count=2, before=newest[0].entry)] == ["req-697", "req-698"]
    for number in (0, 249, 250, 449, 699):
        found = await store.find_request(f"req-{number}")
        assert found is not None
        assert found.at == number
    again = await store.find_request("req-3")
    assert again is not None
    assert again.at == 9000  # of two with one id the newer
    assert await store.find_request("req-700") is None
    await store._commands.ask("XADD", keys.REQUESTS, "*", "id", "bad", "json", "{")
    assert await store.find_request("bad") is None


async def test_a_proxy_is_reached_by_its_inbox(store: Store) -> None:
    assert await store.proxy_commands("p1", None, 0.01) == ([], None)
    show = ProxyCommand(id="c1", kind="show", by="me")
    await store.command_proxies([], show)
    await store.command_proxies(["p1", "p2"], show)
    found, cursor = await store.proxy_commands("p1", None, 1)
    assert found == [show]
    waiting = asyncio.create_task(store.proxy_commands("p1", cursor, 5))
    cancel = ProxyCommand(id="c2", kind="cancel", request="req-1")
    await store.command_proxies(["p1"], cancel)
    assert (await waiting)[0] == [cancel]
    assert (await store.proxy_commands("p2", None, 1))[0] == [show]
    await store._commands.ask("XADD", keys.proxy_inbox("p2"), "*", "json", "{")
    assert (await store.proxy_commands("p2", "0-0", 1))[0] == [show]
    assert 0 < int(await store._commands.ask("TTL", keys.proxy_inbox("p1"))) <= 60

    await store.answer_command("c2", CommandAnswer(proxy="p1", found=True, record=request(1)))
    await store.answer_command("c2", CommandAnswer(proxy="p2", found=False))
    answers = {answer.proxy: answer for answer in await store.command_answers("c2")}
    assert answers["p1"].record == request(1)
    assert not answers["p2"].found
    await store._commands.ask("HSET", keys.answers("c2"), "p3", "{")
    assert {answer.proxy for answer in await store.command_answers("c2")} == {"p1", "p2"}
    assert await store.command_answers("c9") == []
    assert 0 < int(await store._commands.ask("TTL", keys.answers("c2"))) <= 60


async def test_what_is_open_is_forgotten_with_its_proxy(store: Store) -> None:
    assert await store.read_inflight([]) == {}
    report = InflightReport(proxy="p1", at=1.0, total=0)
    await store.publish_inflight(report)
    await store._commands.ask("SET", keys.inflight("p3"), "{")
    assert await store.read_inflight(["p1", "p2", "p3"]) == {"p1": report}
    assert 0 < int(await store._commands.ask("PTTL", keys.inflight("p1"))) <= 4000


async def test_log_lines_travel_only_while_watched(store: Store) -> None:
    assert await store.is_watched(["chat-r1"]) == set()
    await store.watch_logs("chat-r1")
    many = [f"other-r{n}" for n in range(120)]
    assert await store.is_watched([*many, "chat-r1"]) == {"chat-r1"}
    assert await store.watched_replicas() == {"chat-r1"}
    assert 0 < int(await store._commands.ask("TTL", keys.logwatch("chat-r1"))) <= 15


async def test_log_lines_are_read_on_from_an_id(store: Store) -> None:
    assert await store.read_logs("chat-r1") == []
    lines = [LogLine(at=float(n), source="chat-r1", text=f"line {n}") for n in range(5)]
    await store.append_logs("chat-r1", lines)
    await store.append_logs("chat-r1", [])
    found = await store.read_logs("chat-r1", count=3)
    assert [line.text for line in found] == ["line 0", "line 1", "line 2"]
    rest = await store.read_logs("chat-r1", after=found[-1].id)
    assert [line.text for line in rest] == ["line 3", "line 4"]
    waiting = asyncio.create_task(store.read_logs("chat-r1", after=rest[-1].id, block_ms=5000))
    await store.append_logs("chat-r1", [LogLine(at=9.0, source="chat-r1", text="late", gap=7)])
    async with asyncio.timeout(5):
        assert [(line.text, line.gap) for line in await waiting] == [("late", 7)]
    assert await store.read_logs("chat-r1", after="9999999999999-0", block_ms=20) == []
    assert 0 < int(await store._commands.ask("TTL", keys.logs("chat-r1"))) <= 60


async def test_a_second_agent_on_a_node_is_refused(store: Store) -> None:
    assert await store.claim_node("n1", "boot-1", 10)
    assert await store.claim_node("n1", "boot-1", 10)
    assert not await store.claim_node("n1", "boot-1", 11)
    assert not await store.claim_node("n1", "boot-2", 10)
    assert await store.claim_node("n2", "boot-1", 11)
    assert await store.node_holder("n1") == Claim("boot-1", 10)
    # The first one was killed and its successor, on the same machine, has seen that.
    assert not await store.claim_node("n1", "boot-1", 11, replacing=Claim("boot-1", 9))
    assert await store.claim_node("n1", "boot-1", 11, replacing=Claim("boot-1", 10))
    assert not await store.claim_node("n1", "boot-1", 10)
    assert not await store.release_node("n1", "boot-1", 10)
    assert await store.release_node("n1", "boot-1", 11)
    assert await store.node_holder("n1") is None


@pytest.mark.parametrize("seconds", [0.05])
async def test_a_claim_ends_with_its_agent(store: Store, seconds: float) -> None:
    assert await store.claim_node("n1", "boot-1", 10, ttl_seconds=seconds)
    async with asyncio.timeout(5):
        while not await store.claim_node("n1", "boot-2", 20):
            await asyncio.sleep(0.005)
