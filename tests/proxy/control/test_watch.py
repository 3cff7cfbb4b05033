"""The watch: a snapshot and differences that always add up to what is, for quick and slow readers alike."""

import asyncio
import json
from typing import Any

import pytest

from nebula_core.records.access import Role
from nebula_core.records.event import Event
from nebula_core.records.views import WatchDelta, WatchSnapshot
from nebula_proxy.control.scopes import Scope, cut
from nebula_proxy.control.views import in_steps
from nebula_proxy.control.watching import BACKLOG, Member
from tests.support.control import Events, RunningControl, following


class Client:
    """What a terminal does with the messages: replace and remove."""

    def __init__(self) -> None:
        self.cluster: Any = None
        self.nodes: dict[str, Any] = {}
        self.deployments: dict[str, Any] = {}
        self.replicas: dict[str, Any] = {}
        self.events: list[Event] = []
        self.snapshots = 0

    def take(self, name: str, data: Any) -> None:
        if name == "snapshot":
            whole = WatchSnapshot.model_validate(data)
            self.snapshots += 1
            self.cluster = whole.cluster
            self.nodes = {one.id: one for one in whole.nodes}
            self.deployments = {one.name: one for one in whole.deployments}
            self.replicas = {one.id: one for one in whole.replicas}
            self.events = list(whole.events)
            return
        assert name == "delta"
        delta = WatchDelta.model_validate(data)
        self.cluster = delta.cluster or self.cluster
        self.nodes.update({one.id: one for one in delta.nodes})
        self.deployments.update({one.name: one for one in delta.deployments})
        self.replicas.update({one.id: one for one in delta.replicas})
        for gone, known in (
            (delta.gone_nodes, self.nodes),
            (delta.gone_deployments, self.deployments),
            (delta.gone_replicas, self.replicas),
        ):
            for one in gone:
                del known[one]
        self.events += delta.events


async def follow(client: Client, events: Events, holds: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds(client):
            client.take(*await events.next(seconds))


async def test_a_snapshot_then_differences_that_add_up(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api, following(api, "/watch", interval_ms=100) as stream:
        client = Client()
        client.take(*await stream.next())
        assert set(client.nodes) == {"n1", "n2"}
        assert client.cluster.leader == control.process.planner.holder
        await api.put("/deployments/chat", json={"source": "sim", "engine": "simulated", "replicas": 2})
        await follow(client, stream, lambda seen: "chat" in seen.deployments)
        await control.ready()
        await follow(client, stream, lambda seen: seen.deployments["chat"].replicas_ready == 2)
        assert set(client.replicas) == {"chat-r1", "chat-r2"}
        assert [event.kind for event in client.events if event.actor == "operator-key"] == ["deploy"]
        await api.delete("/deployments/chat")
        await control.until(lambda look: not look.replicas, "all is gone")
        await follow(client, stream, lambda seen: not seen.replicas and not seen.deployments)
        look = control.desk.look(in_steps)
        assert client.nodes.keys() == look.nodes.keys()
        assert client.snapshots == 1
        identifiers = [event.id for event in client.events]
        assert identifiers == sorted(set(identifiers), key=identifiers.index)


async def test_a_durable_change_is_told_at_once(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api, following(api, "/watch", interval_ms=60_000) as stream:
        await stream.next()
        await api.post("/nodes/n1/cordon")
        await stream.until(lambda _, data: any(node.get("cordoned") for node in data.get("nodes", ())))


async def test_nothing_happens_nothing_is_sent(control: RunningControl) -> None:
    """Ages alone are no news for a second or so; what keeps the line alive is a comment."""
    before = cut(control.desk.look(in_steps).views(), Scope())
    after = cut(control.desk.look(in_steps).views(), Scope())
    assert before == after


async def test_scopes(control: RunningControl) -> None:
    await control.deploy("chat", 2)
    await control.deploy("other", 1)
    await control.ready("chat")
    await control.ready("other")
    async with control.client(Role.VIEWER) as api:
        async with following(api, "/watch", scope="deployment:other") as stream:
            _, data = await stream.next()
            assert [one["name"] for one in data["deployments"]] == ["other"]
            assert {one["deployment"] for one in data["replicas"]} == {"other"}
            assert len(data["nodes"]) == 1
        async with following(api, "/watch", scope="node:n1") as stream:
            _, data = await stream.next()
            assert [one["id"] for one in data["nodes"]] == ["n1"]
            assert {one["node"] for one in data["replicas"]} == {"n1"}
        for bad in ("all", "node:", "pod:x", ""):
            assert (await api.get("/watch", params={"scope": bad})).status_code == 422
        assert (await api.get("/watch", params={"interval_ms": 1})).status_code == 422


async def test_watchers_of_one_scope_share_the_work(control: RunningControl) -> None:
    async with control.client(Role.VIEWER) as api:
        async with following(api, "/watch") as one, following(api, "/watch") as two, following(api, "/watch") as three:
            for stream in (one, two, three):
                await stream.next()
            [group] = control.desk.hub._groups.values()
            assert len(group.members) == 3
            assert control.desk.hub.open_streams == 3
        await control.until(lambda _: control.desk.hub.open_streams == 0, "those who left are forgotten")
        assert control.desk.hub._groups == {}


async def test_a_slow_reader_gets_a_fresh_snapshot(control: RunningControl) -> None:
    """It takes nothing while far more happens than its queue holds: then it is told how things are, once."""
    hub = control.desk.hub
    slow = hub.watch(Scope(), 100)
    client = Client()

    async def take(count: int = 1) -> None:
        for _ in range(count):
            chunk = (await asyncio.wait_for(anext(slow), 30)).decode()
            if chunk.startswith("event: "):
                name, data = chunk.removeprefix("event: ").split("\n", 1)
                client.take(name, json.loads(data.removeprefix("data: ")))

    await take()
    [group] = hub._groups.values()
    [member] = group.members
    async with control.client(Role.OPERATOR) as api:
        for number in range(BACKLOG * 4):
            await api.post(f"/nodes/n1/{'un' if number % 2 else ''}cordon")
            hub.tell(everybody=True)
            assert len(member.queue) <= BACKLOG
            if member.stale:
                break
        assert member.stale
        await api.post("/nodes/n2/cordon")
    await take()
    assert client.snapshots == 2
    while not client.nodes["n2"].cordoned:
        await take()
    await slow.aclose()


def test_a_member_that_is_behind_is_offered_nothing() -> None:
    member = Member(stale=False)
    for number in range(BACKLOG):
        member.offer(b"%d" % number)
    assert len(member.queue) == BACKLOG
    member.offer(b"one too many")
    assert member.stale
    assert not member.queue
    member.offer(b"more")
    assert not member.queue


async def test_streams_end_with_the_process(control: RunningControl) -> None:
    async with control.client(Role.VIEWER) as api, following(api, "/watch") as stream:
        await stream.next()
        control.process.server.should_exit = True
        with pytest.raises(AssertionError, match="the stream has ended"):
            await stream.until(lambda *_: False)


async def test_a_stream_ends_with_its_key(control: RunningControl) -> None:
    async with control.client(Role.ADMIN) as api:
        made = (await api.post("/keys", json={"name": "guest", "role": "viewer"})).json()
        control.tokens[Role.VIEWER] = made["key"]
        async with control.client(Role.VIEWER) as guest, following(guest, "/watch", interval_ms=100) as stream:
            await stream.next()
            await api.delete(f"/keys/{made['record']['id']}")
            _, data = await stream.until(lambda name, _: name == "error")
            assert data["error"]["code"] == "invalid_api_key"
            with pytest.raises(AssertionError, match="the stream has ended"):
                await stream.next()
