"""The node's inbox: commands that are verified, carried out at most once, and answered.

    inbox ─► signed for us, not outdated? ─► taken up before? ─► note it on disk ─► its handler ─► result

A handler is a coroutine that may take as long as it needs and tells its progress; each runs in a task of its own, a few
at a time. What was taken up is on disk before anything is done: an agent that was killed does not do it again, it
says that it was interrupted. The store may lose inbox and results; nothing depends on them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from nebula_agent.adapters.disk_threads import DiskThreads
from nebula_agent.adapters.node_files import NodeFiles
from nebula_agent.loops.context import Problems
from nebula_core.errors import NebulaError, SignatureRefused, StoreUnavailable
from nebula_core.records.base import frozen_map
from nebula_core.records.command import Command, CommandArgument, CommandResult, CommandState, SignedCommand
from nebula_core.records.report import Problem
from nebula_core.runtime.clock import Clock
from nebula_core.security.commands import CommandOutdated, verify_command
from nebula_core.security.envelope import VerifyKeys
from nebula_core.store.store import Store

log = structlog.get_logger(__name__)

#: One wait for the inbox; a stop of the agent cancels it.
WAIT_SECONDS = 5.0
#: Commands carried out at once; more are refused, for their sender to repeat.
MOST_AT_ONCE = 8
#: Progress is written at most so often.
TELL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command; failures are raised as NebulaError."""

    message: str
    facts: Mapping[str, CommandArgument] = field(default_factory=frozen_map)


#: Tells the step a command is at, and how far it is (0..1, None: unknown).
Tell = Callable[[str, float | None], None]
Handler = Callable[[Command, Tell], Awaitable[Outcome]]


class _Progress(Protocol):
    @property
    def ratio(self) -> float | None: ...


class Errand(Protocol):
    """What a command waits for and others may wait for too: an image or a model on its way."""

    @property
    def progress(self) -> _Progress: ...

    @property
    def over(self) -> bool: ...

    @property
    def words(self) -> str: ...


async def follow(errand: Errand, changed: asyncio.Event, tell: Tell) -> None:
    """Tells how it goes until it is over; `changed` is set whenever something of it is another."""
    while not errand.over:
        tell(errand.words, errand.progress.ratio)
        changed.clear()
        await changed.wait()


class CommandLoop:
    """`handlers` by kind of command."""

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        keys: VerifyKeys,
        files: NodeFiles,
        clock: Clock,
        problems: Problems,
        handlers: Mapping[str, Handler],
        disk: DiskThreads,
    ) -> None:
        #: Another agent has this node's name: nothing is obeyed meanwhile.
        self.suspended = False
        self._node = node
        self._store = store
        self._keys = keys
        self._files = files
        self._clock = clock
        self._problems = problems
        self._handlers = handlers
        self._disk = disk
        self._taken = files.taken_commands()
        self._cursor: str | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def iterate(self) -> None:
        """Waits for the inbox and takes up what came."""
        first = self._cursor is None
        try:
            if first:
                await self._tell_interrupted()
            entries = await self._store.read_inbox(
                self._node, self._cursor or "0-0", block_seconds=0.0 if first else WAIT_SECONDS
            )
        except StoreUnavailable:
            await self._clock.sleep(1.0)
            return
        self._cursor = self._cursor or "0-0"
        for entry_id, signed in entries:
            self._cursor = entry_id
            if signed is not None and not self.suspended:
                await self._take(signed, old=first)

    async def close(self) -> None:
        """Ends what is under way; the next agent process says that it was interrupted."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def finished(self) -> None:
        """Waits for what is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _take(self, signed: SignedCommand, *, old: bool) -> None:
        now = self._clock.wall()
        try:
            command = verify_command(self._keys, signed, node=self._node, now=now)
        except CommandOutdated as error:
            # What an agent finds when it starts may well be old; what comes while it waits may not.
            if not old and not self._taken.knows(error.command.id):
                self._refuse(error)
                await self._answer(error.command, CommandState.REFUSED, error.message, hint=error.hint)
            return
        except SignatureRefused as error:
            self._refuse(error)
            return
        if self._taken.knows(command.id):
            return
        self._problems.set("commands", None)
        handler = self._handlers.get(command.kind)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            await self._answer(
                command,
                CommandState.REFUSED,
                f"this agent does not know {command.kind}",
                hint=f"It knows {known}; look whether it needs an update, or a setting",
            )
            return
        if len(self._tasks) >= MOST_AT_ONCE or self._taken.full(now):
            await self._answer(
                command, CommandState.REFUSED, "this node has too many commands under way", hint="Send it again later"
            )
            return
        await self._keep(begun=command)
        log.info("command_taken", id=command.id, kind=command.kind, by=command.by, arguments=command.arguments)
        self._tasks[command.id] = asyncio.create_task(
            self._carry_out(command, handler), name=f"command:{command.kind}:{command.id}"
        )

    async def _carry_out(self, command: Command, handler: Handler) -> None:
        telling = _Telling(self, command)
        try:
            await telling.say("begun", None)
            outcome = await handler(command, telling.tell)
            await telling.end()
            await self._answer(command, CommandState.DONE, outcome.message, facts=outcome.facts, progress=1.0)
            log.info("command_done", id=command.id, kind=command.kind, message=outcome.message)
        except NebulaError as error:
            await telling.end()
            await self._answer(command, CommandState.FAILED, error.message, hint=error.hint)
            log.warning("command_failed", id=command.id, kind=command.kind, error=str(error))
        except Exception:
            await telling.end()
            await self._answer(command, CommandState.FAILED, "the agent failed to carry it out", hint="See its log")
            log.exception("command_failed", id=command.id, kind=command.kind)
        finally:
            self._tasks.pop(command.id, None)
            await telling.end()
        await self._keep(ended=command.id)

    async def _answer(
        self,
        command: Command,
        state: CommandState,
        message: str,
        *,
        hint: str | None = None,
        progress: float | None = None,
        facts: Mapping[str, CommandArgument] | None = None,
    ) -> None:
        result = CommandResult(
            id=command.id,
            node=self._node,
            kind=command.kind,
            state=state,
            message=message,
            hint=hint,
            progress=progress,
            facts=dict(facts or {}),
            at=self._clock.wall(),
        )
        try:
            await self._store.put_result(result)
        except NebulaError as error:
            log.warning("result_not_written", id=command.id, state=state.value, error=str(error))

    async def _tell_interrupted(self) -> None:
        for command in self._taken.unfinished:
            await self._answer(
                command,
                CommandState.FAILED,
                "the agent was restarted while it ran",
                hint="Look what it left, then repeat",
            )
            await self._keep(ended=command.id)

    async def _keep(self, *, begun: Command | None = None, ended: str | None = None) -> None:
        if begun is not None:
            self._taken = self._taken.begun(begun, self._clock.wall())
        if ended is not None:
            self._taken = self._taken.ended(ended)
        await self._disk.do("commands", self._files.keep_taken_commands, self._taken)

    def _refuse(self, error: SignatureRefused) -> None:
        problem = Problem(
            code=error.code if isinstance(error, CommandOutdated) else "command_refused",
            message=f"a command is not obeyed: {error.message}",
            severity="crit",
            hint=error.hint or "Look who writes to the store",
        )
        if self._problems.set("commands", problem):
            log.error("command_refused", reason=error.message)


class _Telling:
    """Progress of one command: the newest is written, not more than twice a second, never in the handler's way."""

    def __init__(self, loop: CommandLoop, command: Command) -> None:
        self._loop = loop
        self._command = command
        self._latest: tuple[str, float | None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def say(self, message: str, progress: float | None) -> None:
        await self._loop._answer(self._command, CommandState.RUNNING, message, progress=progress)  # noqa: SLF001 - its other half

    def tell(self, message: str, progress: float | None) -> None:
        self._latest = (message, progress)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())

    async def end(self) -> None:
        """Nothing is written any more: the last word follows."""
        task, self._task, self._latest = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _write(self) -> None:
        while (latest := self._latest) is not None:
            self._latest = None
            await self.say(*latest)
            await asyncio.sleep(TELL_SECONDS)
