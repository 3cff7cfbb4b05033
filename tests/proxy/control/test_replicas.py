"""Single replicas through the Control API: replaced, and their lines followed."""

import asyncio
import time

from nebula_core.records.access import Role
from nebula_core.records.views import LogLine
from tests.support.control import RunningControl, following


def line(text: str, at: float | None = None) -> LogLine:
    return LogLine(at=time.time() if at is None else at, source="chat-r1", text=text)


async def test_one_replica_is_replaced_and_the_order_ends_with_it(control: RunningControl) -> None:
    await control.deploy("chat", 2)
    await control.ready()
    async with control.client(Role.OPERATOR) as api:
        shown = (await api.post("/replicas/chat-r1/drain", params={"dry_run": 1})).json()
        assert "starts chat-r3" in shown["summary"]
        assert not shown["last_ready"]
        assert (await api.post("/replicas/chat-r1/drain")).status_code == 200
        again = (await api.post("/replicas/chat-r1/drain")).json()
        assert again["deployment"]["generation"] == 2
        await control.until(lambda look: set(look.replicas) == {"chat-r2", "chat-r3"}, "chat-r1 was replaced")
        assert (await api.post("/replicas/chat-r2/restart")).status_code == 200
        await control.until(lambda look: set(look.replicas) == {"chat-r3", "chat-r4"}, "chat-r2 was replaced")
        moves = control.process.watcher.snapshot.deployments["chat"].moves
        assert [one.replica for one in moves] == ["chat-r2"]
        missing = await api.post("/replicas/chat-r9/restart")
        assert missing.status_code == 404
        assert "chat-r3" in missing.json()["error"]["hint"]


async def test_an_engine_started_by_hand_is_not_touched(control: RunningControl) -> None:
    from tests.support.records import a_report, a_status

    report = a_report("n7", replicas=(a_status("mine", "n7", managed=False, deployment="mine", model="mine"),))
    await control.store.publish_report(report)
    await control.until(lambda look: "mine" in look.replicas, "it is seen")
    async with control.client(Role.OPERATOR) as api:
        assert (await api.get("/replicas/mine")).json()["managed"] is False
        assert (await api.post("/replicas/mine/restart")).status_code == 409


async def test_lines_are_asked_for_and_followed(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    store = control.store
    await store.append_logs("chat-r1", [line(f"old {number}") for number in range(10)])
    async with control.client(Role.VIEWER) as api, following(api, "/replicas/chat-r1/logs", follow=1, tail=3) as lines:
        seen = [(await lines.next())[1]["text"] for _ in range(3)]
        assert seen == ["old 7", "old 8", "old 9"]
        assert await store.is_watched(["chat-r1"]) == {"chat-r1"}
        await store.append_logs("chat-r1", [line("new \u2028 line"), line("gap", 0.0).model_copy(update={"gap": 4})])
        name, data = await lines.next()
        assert (name, data["text"]) == ("line", "new \u2028 line")
        name, data = await lines.next()
        assert (data["text"], data["gap"]) == ("gap", 4)


async def test_a_long_tail_is_cut_to_what_was_asked(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    for start in range(0, 1800, 300):
        await control.store.append_logs("chat-r1", [line(f"{number}") for number in range(start, start + 300)])
    async with control.client(Role.VIEWER) as api:
        async with following(api, "/replicas/chat-r1/logs", follow=1, tail=5) as lines:
            assert [(await lines.next())[1]["text"] for _ in range(5)] == ["1795", "1796", "1797", "1798", "1799"]
        page = (await api.get("/replicas/chat-r1/logs", params={"tail": 1200})).json()
        assert [page["items"][0]["text"], page["items"][-1]["text"]] == ["600", "1799"]
        assert page["next"] is None
        assert (await api.get("/replicas/chat-r9/logs")).status_code == 404


async def test_lines_of_the_last_seconds(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    await control.store.append_logs("chat-r1", [line("long ago", time.time() - 100), line("now")])
    async with control.client(Role.VIEWER) as api:
        page = (await api.get("/replicas/chat-r1/logs", params={"since": 50})).json()
        assert [one["text"] for one in page["items"]] == ["now"]


async def test_the_first_lines_may_take_a_moment(control: RunningControl) -> None:
    """The agent only begins to send when it sees that somebody watches."""
    await control.deploy("chat", 1)
    await control.ready()

    async def agent() -> None:
        while not await control.store.is_watched(["chat-r1"]):
            await asyncio.sleep(0.02)
        await control.store.append_logs("chat-r1", [line("here")])

    async with control.client(Role.VIEWER) as api, asyncio.TaskGroup() as group:
        group.create_task(agent())
        page = (await api.get("/replicas/chat-r1/logs")).json()
    assert [one["text"] for one in page["items"]] == ["here"]


async def test_the_stream_ends_with_the_replica(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    async with control.client(Role.OPERATOR) as api, following(api, "/replicas/chat-r1/logs", follow=1) as lines:
        await api.delete("/deployments/chat")
        await control.until(lambda look: not look.replicas, "it is gone")
        name, _ = await lines.until(lambda name, _: name == "end")
        assert name == "end"
