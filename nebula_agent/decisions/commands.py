"""Which commands were taken up already: each is carried out at most once, whoever repeats it."""

from collections.abc import Mapping

from pydantic import Field

from nebula_core.records.base import Record
from nebula_core.records.command import Command
from nebula_core.security.commands import LEEWAY_SECONDS

#: Far more than a node is asked within the life of a command.
KNOWN_MOST = 1_000


class Taken(Record):
    """One command that was taken up; `command` stays until it is over, to be told of after a restart."""

    expires_at: float
    command: Command | None = None


class TakenCommands(Record):
    by_id: dict[str, Taken] = Field(default_factory=dict)

    def knows(self, command: str) -> bool:
        return command in self.by_id

    def full(self, now: float) -> bool:
        """So many came that an old one could only be forgotten while it may still be replayed."""
        return len(self._alive(now)) >= KNOWN_MOST

    def begun(self, command: Command, now: float) -> "TakenCommands":
        taken = Taken(expires_at=command.expires_at, command=command)
        return TakenCommands(by_id={**self._alive(now), command.id: taken})

    def ended(self, command: str) -> "TakenCommands":
        known = self.by_id.get(command)
        if known is None:
            return self
        return TakenCommands(by_id={**self.by_id, command: Taken(expires_at=known.expires_at)})

    @property
    def unfinished(self) -> tuple[Command, ...]:
        return tuple(taken.command for taken in self.by_id.values() if taken.command is not None)

    def _alive(self, now: float) -> Mapping[str, Taken]:
        """Those that are under way, or could still pass for new."""
        return {
            name: taken
            for name, taken in self.by_id.items()
            if taken.command is not None or taken.expires_at + LEEWAY_SECONDS >= now
        }
