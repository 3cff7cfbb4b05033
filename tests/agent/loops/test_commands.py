"""The node's inbox on a real store: carried out once, told while it runs, never again after a restart."""

import asyncio

import pytest

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.node_files import NodeFiles
from nebula_agent.loops.commands import MOST_AT_ONCE, CommandLoop, Outcome
from nebula_agent.loops.context import Problems
from nebula_core.errors import NebulaError
from nebula_core.records.command import Command, CommandState
from nebula_core.runtime.clock import SystemClock
from nebula_core.security.commands import sign_command
from nebula_core.security.envelope import SigningKey, VerifyKeys
from tests.support.agent import eventually

KEY = SigningKey.generate()


class Inbox:
    def __init__(self, directory, store):
        self.directory = directory
        self.store = store
        self.clock = SystemClock()
        self.done = []
        self.gate = asyncio.Event()
        self.number = 0
        self.open()

    def open(self):
        self.problems = Problems()
        self.files = NodeFiles(self.directory)
        self.files.open()
        self.loop = CommandLoop(
            node="n1",
            store=self.store,
            keys=VerifyKeys([KEY.public]),
            files=self.files,
            clock=self.clock,
            problems=self.problems,
            handlers={"image.pull": self.pull, "image.fail": self.fail, "image.break": self.broken},
            disk=DiskThreads("test"),
        )

    async def restarted(self):
        await self.loop.close()
        self.files.close()
        self.open()

    async def pull(self, command, tell):
        self.done.append(command.arguments["image"])
        tell("40 %", 0.4)
        await self.gate.wait()
        return Outcome("pulled", {"bytes": 7})

    async def fail(self, _command, _tell):
        raise NebulaError("there is no such image", hint="spell it right")

    async def broken(self, _command, _tell):
        raise RuntimeError("boom")

    def command(self, kind="image.pull", *, age=0.0, node="n1", image="a"):
        self.number += 1
        now = self.clock.wall() - age
        return Command(
            id=f"{self.number:024}",
            node=node,
            kind=kind,
            arguments={"image": image},
            issued_at=now,
            expires_at=now + 60,
        )

    async def send(self, command, key=KEY, inbox="n1"):
        await self.store.send_command(inbox, sign_command(key, command))
        return command

    async def state(self, command):
        return (await self.store.get_results([command.id])).get(command.id)

    async def until(self, command, state):
        async def reached():
            result = await self.state(command)
            return result if result is not None and result.state is state else None

        return await eventually(reached, f"{command.kind} is {state}")


@pytest.fixture
async def inbox(tmp_path, store):
    made = Inbox(tmp_path, store)
    yield made
    await made.loop.close()
    made.files.close()


async def test_it_is_done_once_with_progress_and_a_result(inbox):
    command = await inbox.send(inbox.command())
    await inbox.loop.iterate()

    async def told():
        result = await inbox.state(command)
        return result if result is not None and result.progress == 0.4 else None

    assert (await eventually(told, "progress")).message == "40 %"
    inbox.gate.set()
    result = await inbox.until(command, CommandState.DONE)
    assert (result.message, result.facts, result.progress) == ("pulled", {"bytes": 7}, 1.0)
    # The very same bytes again, by whoever can write to the store.
    await inbox.send(command)
    await inbox.loop.iterate()
    await inbox.loop.finished()
    assert inbox.done == ["a"]


async def test_a_replay_changes_no_result_and_results_are_kept_for_an_hour(inbox):
    inbox.gate.set()
    first, second = inbox.command(image="a"), inbox.command(image="b")
    # In another order than they were made, each of them twice.
    for command in (second, first, second, first):
        await inbox.send(command)
    await inbox.loop.iterate()
    results = [await inbox.until(command, CommandState.DONE) for command in (first, second)]
    await inbox.restarted()
    for command in (first, second):
        await inbox.send(command)
    await inbox.loop.iterate()
    await inbox.loop.finished()
    assert sorted(inbox.done) == ["a", "b"]
    assert [await inbox.state(command) for command in (first, second)] == results
    left = await inbox.store._commands.ask("TTL", f"nebula:v1:result:{first.id}")
    assert 3500 < left <= 3600


async def test_failures_are_told_with_their_hint_and_end_nothing(inbox):
    lost = await inbox.send(inbox.command("image.fail"))
    broken = await inbox.send(inbox.command("image.break"))
    strange = await inbox.send(inbox.command("image.burn"))
    await inbox.loop.iterate()
    result = await inbox.until(lost, CommandState.FAILED)
    assert (result.message, result.hint) == ("there is no such image", "spell it right")
    assert (await inbox.until(broken, CommandState.FAILED)).message == "the agent failed to carry it out"
    assert "does not know image.burn" in (await inbox.until(strange, CommandState.REFUSED)).message


async def test_what_was_under_way_when_the_agent_died_is_not_done_again(inbox):
    command = await inbox.send(inbox.command())
    await inbox.loop.iterate()
    await inbox.until(command, CommandState.RUNNING)
    await inbox.restarted()
    await inbox.loop.iterate()
    assert "restarted" in (await inbox.until(command, CommandState.FAILED)).message
    inbox.gate.set()
    await inbox.loop.finished()
    assert inbox.done == ["a"]


async def test_forged_misdirected_and_old_ones_are_not_obeyed_and_named(inbox):
    await inbox.loop.iterate()
    for command, key, said in (
        (inbox.command(), SigningKey.generate(), "unknown key"),
        (inbox.command(node="n2"), KEY, "made for node 'n2'"),
        (inbox.command(age=300), KEY, "the command ended 2"),
        (inbox.command(age=-300), KEY, "in the future"),
    ):
        await inbox.send(command, key)
        await inbox.loop.iterate()
        assert said in inbox.problems.all()[0].message
    assert inbox.done == []
    # A good one ends the alarm.
    await inbox.send(inbox.command())
    await inbox.loop.iterate()
    assert inbox.problems.all() == ()


async def test_too_many_at_once_are_refused_and_may_be_repeated(inbox):
    commands = [await inbox.send(inbox.command(image=str(n))) for n in range(MOST_AT_ONCE + 1)]
    await inbox.loop.iterate()
    assert "too many" in (await inbox.until(commands[-1], CommandState.REFUSED)).message
    inbox.gate.set()
    for command in commands[:-1]:
        await inbox.until(command, CommandState.DONE)


async def test_an_agent_that_lost_its_name_obeys_nothing(inbox):
    inbox.loop.suspended = True
    await inbox.send(inbox.command())
    await inbox.loop.iterate()
    await inbox.loop.finished()
    assert inbox.done == []
