"""The few orders that are not state: signed for one node, short-lived, carried out at most once.

A placement says what should be and is read again for ever; a command asks for something to be done now (pull an image,
prune, prefetch) and is worth nothing a minute later. Its result is kept an hour, for whoever asked.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from nebula_core.records.base import Record
from nebula_core.records.ids import NodeName

#: Minted by the control plane; also the key under which the result is found.
CommandId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{8,64}$", max_length=64)]
#: `noun.verb`, e.g. `image.pull`; the agent has a table of those it knows.
CommandKind = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,20}\.[a-z_]{2,20}$", max_length=41)]
CommandArgument = str | int | float | bool | None

#: Longest life of a command, in seconds; an agent refuses one that claims more.
LONGEST_LIFE_SECONDS = 60.0


class Command(Record):
    id: CommandId
    node: NodeName
    kind: CommandKind
    arguments: dict[str, CommandArgument] = Field(default_factory=dict)
    #: Unix seconds of the control process.
    issued_at: float
    expires_at: float
    #: Who asked, for logs and events.
    by: str = ""


class SignedCommand(Record):
    """`payload` is a Command's JSON, byte for byte what was signed (Ed25519, base64)."""

    payload: str
    key_id: str
    signature: str


class CommandState(StrEnum):
    #: Written by the control plane; no agent has taken it up.
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    #: The agent does not do such a thing: its policy, its version, too much at once.
    REFUSED = "refused"

    @property
    def over(self) -> bool:
        return self not in {CommandState.SENT, CommandState.RUNNING}


class CommandResult(Record):
    """What became of a command, as its agent last wrote it."""

    id: CommandId
    node: NodeName
    kind: CommandKind
    state: CommandState
    #: For people: the step it is at, or what came of it.
    message: str = ""
    hint: str | None = None
    #: 0..1; None is unknown.
    progress: float | None = None
    #: What scripts may want to know, e.g. `digest`, `freed_bytes`.
    facts: dict[str, CommandArgument] = Field(default_factory=dict)
    #: Unix seconds of the agent, for display.
    at: float | None = None


class CommandGroup(Record):
    """One call that became a command on each of several nodes; kept beside their results."""

    id: CommandId
    kind: CommandKind
    #: Node by command.
    commands: dict[str, NodeName]
    summary: str = ""
    by: str = ""
    at: float = 0.0
