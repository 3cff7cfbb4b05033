"""Commands on their way to a node, and what became of them.

`inbox:{node}` is a short stream written by the Control API and read by that node's agent; `result:{command}` a string of
one writer, the agent. Both may be lost with the store: a command is repeated by whoever asked, a result is only told.
"""

from collections.abc import Sequence

import structlog

from nebula_core.records.command import CommandGroup, CommandResult, SignedCommand
from nebula_core.store import keys
from nebula_core.store.line import Argument, Line

log = structlog.get_logger(__name__)

#: Commands a node's inbox keeps; each is worth nothing after a minute.
INBOX_KEPT = 256
RESULT_SECONDS = 3600
_INBOX_SECONDS = 600


class Commands:
    _commands: Line
    _waiting: Line

    async def send_command(self, node: str, signed: SignedCommand) -> str:
        """The id the inbox gave."""
        inbox = keys.inbox(node)
        replies = await self._commands.ask_all(
            [
                ["XADD", inbox, "MAXLEN", "~", INBOX_KEPT, "*", "json", signed.to_json()],
                ["EXPIRE", inbox, _INBOX_SECONDS],
            ]
        )
        return str(replies[0])

    async def read_inbox(
        self, node: str, after: str = "0-0", *, block_seconds: float = 0.0
    ) -> list[tuple[str, SignedCommand | None]]:
        """(id, command) after an id, oldest first, waiting for the first; None stands for what cannot be read."""
        command: list[Argument] = ["XREAD", "COUNT", 64]
        if block_seconds > 0:
            command += ["BLOCK", max(1, round(block_seconds * 1000))]
        command += ["STREAMS", keys.inbox(node), after]
        line = self._waiting if block_seconds > 0 else self._commands
        reply = await line.ask(*command, patience=block_seconds)
        return (
            [(entry_id, _decoded(fields.get("json", ""), entry_id)) for entry_id, fields in reply[0][1]]
            if reply
            else []
        )

    async def put_result(self, result: CommandResult) -> None:
        await self._commands.ask("SET", keys.result(result.id), result.to_json(), "EX", RESULT_SECONDS)

    async def get_results(self, commands: Sequence[str]) -> dict[str, CommandResult]:
        """Those of `commands` that an agent has spoken of."""
        if not commands:
            return {}
        found: dict[str, CommandResult] = {}
        for raw in await self._commands.ask("MGET", *(keys.result(name) for name in commands)):
            if raw is None:
                continue
            try:
                result = CommandResult.from_json(raw)
            except ValueError as error:
                log.warning("result_unreadable", error=type(error).__name__)
                continue
            found[result.id] = result
        return found

    async def put_group(self, group: CommandGroup) -> None:
        await self._commands.ask("SET", keys.operation(group.id), group.to_json(), "EX", RESULT_SECONDS)

    async def get_group(self, group: str) -> CommandGroup | None:
        """None as well when it cannot be read."""
        raw = await self._commands.ask("GET", keys.operation(group))
        if raw is None:
            return None
        try:
            return CommandGroup.from_json(raw)
        except ValueError as error:
            log.warning("operation_unreadable", error=type(error).__name__)
            return None


def _decoded(raw: str, entry_id: str) -> SignedCommand | None:
    try:
        return SignedCommand.from_json(raw)
    except ValueError as error:
        log.warning("command_unreadable", id=entry_id, error=type(error).__name__)
        return None
