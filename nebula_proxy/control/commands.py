"""Orders to nodes that are not state: signed here, carried out by agents, answered as one operation with progress.

One call may concern several nodes: each gets a command of its own; the operation is their sum. Whoever asks later, at
whichever control process, finds it in the store for an hour.
"""

import secrets
from collections.abc import Iterable, Mapping
from typing import Literal

from nebula_core.records.command import (
    LONGEST_LIFE_SECONDS,
    Command,
    CommandArgument,
    CommandGroup,
    CommandResult,
    CommandState,
)
from nebula_core.records.views import OperationPart, OperationView
from nebula_core.runtime.clock import Clock
from nebula_core.security.commands import LEEWAY_SECONDS, sign_command
from nebula_core.security.envelope import SigningKey
from nebula_core.store.store import Store

#: A command that no agent has taken up by then never will be.
UNHEARD_SECONDS = LONGEST_LIFE_SECONDS + LEEWAY_SECONDS


class Commander:
    """Signs and sends commands; answers what became of them."""

    def __init__(self, store: Store, key: SigningKey, clock: Clock) -> None:
        self._store = store
        self._key = key
        self._clock = clock

    async def send(
        self, kind: str, orders: Mapping[str, Mapping[str, CommandArgument]], *, by: str, summary: str
    ) -> OperationView:
        """`orders`: the arguments of the command for each node. Raises StoreUnavailable."""
        now = self._clock.wall()
        commands = [
            Command(
                id=secrets.token_hex(12),
                node=node,
                kind=kind,
                arguments=dict(arguments),
                issued_at=now,
                expires_at=now + LONGEST_LIFE_SECONDS,
                by=by,
            )
            for node, arguments in orders.items()
        ]
        group = CommandGroup(
            id=secrets.token_hex(8),
            kind=kind,
            commands={command.id: command.node for command in commands},
            summary=summary,
            by=by,
            at=now,
        )
        await self._store.put_group(group)
        for command in commands:
            await self._store.send_command(command.node, sign_command(self._key, command))
        return operation_view(group, {}, now)

    async def operation(self, operation: str) -> OperationView | None:
        group = await self._store.get_group(operation)
        if group is None:
            return None
        results = await self._store.get_results(list(group.commands))
        return operation_view(group, results, self._clock.wall())


def operation_view(group: CommandGroup, results: Mapping[str, CommandResult], now: float) -> OperationView:
    """What is known of an operation at `now` (Unix seconds, of the clock that issued it)."""
    parts = tuple(
        _part(node, results.get(command), now - group.at)
        for command, node in sorted(group.commands.items(), key=lambda item: item[1])
    )
    return OperationView(
        id=group.id,
        kind=group.kind,
        summary=group.summary,
        state=_state(parts),
        progress=_progress(parts),
        by=group.by,
        at=group.at,
        parts=parts,
    )


def _part(node: str, result: CommandResult | None, age_seconds: float) -> OperationPart:
    if result is not None:
        return OperationPart(
            node=node,
            state=result.state,
            message=result.message,
            hint=result.hint,
            progress=result.progress,
            facts=result.facts,
        )
    if age_seconds > UNHEARD_SECONDS:
        return OperationPart(
            node=node,
            state=CommandState.FAILED,
            message="its agent did not take it up in time",
            hint="look whether the agent runs and knows commands (version), then repeat",
        )
    return OperationPart(node=node, state=CommandState.SENT, message="sent")


def _state(parts: Iterable[OperationPart]) -> Literal["running", "done", "failed"]:
    states = {part.state for part in parts}
    if any(not state.over for state in states):
        return "running"
    return "failed" if states & {CommandState.FAILED, CommandState.REFUSED} else "done"


def _progress(parts: tuple[OperationPart, ...]) -> float | None:
    known = [1.0 if part.state.over else part.progress for part in parts]
    said = [value for value in known if value is not None]
    return None if not said else round(sum(said) / len(parts), 4)
