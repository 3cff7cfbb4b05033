"""The terminal's own client against the real API: what one writes the other reads."""

import asyncio

import pytest

from nebula_core.records.access import Role
from nebula_core.records.views import LogLine, WatchDelta, WatchSnapshot
from nebula_tui.adapters.control import Alive, Connected, ControlClient, NotAllowed, NotFound
from tests.support.control import RunningControl


async def test_the_terminal_reads_and_acts(control: RunningControl) -> None:
    await control.deploy("chat", 2)
    await control.ready()
    client = ControlClient(control.url, control.tokens[Role.OPERATOR])
    try:
        assert (await client.whoami()).role == "operator"
        assert await client.openai_base_url() == "http://127.0.0.1:8081/v1"
        assert {node.id for node in await client.nodes()} == {"n1", "n2"}
        assert [replica.id for replica in await client.replicas()] == ["chat-r1", "chat-r2"]
        assert [one.name for one in await client.deployments()] == ["chat"]
        shown = await client.scale("chat", 3, dry_run=True)
        assert shown.dry_run
        assert (await client.drain("node", "n1", dry_run=True)).plan.changes
        assert not (await client.restart("replica", "chat-r1", dry_run=False)).dry_run
        assert (await client.cordon("n1", dry_run=False)).summary
        assert {event.kind for event in await client.events(count=50)} >= {"cordon", "restart"}
        with pytest.raises(NotFound, match="chta"):
            await client.scale("chta", 1, dry_run=True)
    finally:
        await client.aclose()


async def test_the_terminal_watches_and_tails(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    client = ControlClient(control.url, control.tokens[Role.VIEWER])
    try:
        async with asyncio.timeout(30):
            watch = client.watch()
            assert isinstance(await anext(watch), Connected)
            assert isinstance(await anext(watch), WatchSnapshot)
            await control.deploy("other", 0)
            told: set[str] = set()
            while "other" not in told:
                message = await anext(watch)
                assert isinstance(message, WatchDelta | Alive)
                if isinstance(message, WatchDelta):
                    told |= {one.name for one in message.deployments}
            await watch.aclose()  # type: ignore[attr-defined]
            await control.store.append_logs("chat-r1", [LogLine(at=1.0, source="chat-r1", text="hello")])
            lines = client.logs("chat-r1", tail=5)
            assert (await anext(lines)).text == "hello"
            await lines.aclose()  # type: ignore[attr-defined]
        with pytest.raises(NotAllowed, match="viewer"):
            await client.cordon("n1", dry_run=False)
    finally:
        await client.aclose()
