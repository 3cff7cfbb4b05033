"""The hand-over between the agent and an engine's container that somebody else started (a Kubernetes pod), as files.

Both see one folder. What should run is state, not an order: the agent writes `start_command.sh`, whole or not at all,
with the engine epoch in its first lines; the container's entry point (`deploy/sidecar-entrypoint.sh`) runs it, and ends
it when the file is gone or names another epoch. What does run is written by the entry point alone: `running` while the
engine lives, `ended` with its status when it does not. An epoch that has ended is never run again: only the agent
starts engines anew, so a container that was restarted reports the end of what it ran and waits.

    agent:        start_command.sh (epoch e1) ───────────► removed
    entry point:                running: e1 ─► ended: e1 0
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

COMMAND_FILE = "start_command.sh"
RUNNING_FILE = "running"
ENDED_FILE = "ended"
LOG_FILE = "engine.log"
KEY_FILE = "engine.key"
_EPOCH = "# engine_epoch: "


class Ran(NamedTuple):
    """`ended`: which epoch, and how; None is unknown (its container was restarted)."""

    engine_epoch: str
    status: int | None


def script(engine_epoch: str, argv: Sequence[str], env: Mapping[str, str]) -> str:
    """What the entry point runs. Every word is quoted: nothing of a deployment is read by the shell."""
    lines = ["#!/bin/sh", f"{_EPOCH}{engine_epoch}", "# Written by nebula-agent; removing it stops the engine."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    return "\n".join([*lines, f"exec {shlex.join(argv)}", ""])


def epoch_of(text: str) -> str | None:
    """The engine epoch a script was written for; None: it is none of ours."""
    for line in text.splitlines()[:5]:
        if line.startswith(_EPOCH):
            return line.removeprefix(_EPOCH).strip()
    return None


def read_ended(text: str) -> Ran | None:
    """`EPOCH STATUS`, or `EPOCH lost`; a signal counts as 128 and its number, as shells do."""
    words = text.split()
    if len(words) != 2:
        return None
    status = int(words[1]) if words[1].isdecimal() else None
    return Ran(words[0], None if status is None else 128 - status if status > 128 else status)
