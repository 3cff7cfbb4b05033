"""Signed commands: as placements, but short-lived, and each of them good for once.

A command is obeyed when it is signed under a domain of its own (no placement can pass for one), made for this node, and
neither expired nor from the future. Whether it was carried out before is remembered by the agent, on its disk, for
as long as it could be obeyed again. Clocks are compared here and only here: a command must die, and there is nothing else
to tell its age by. A node whose clock is off by more than the leeway refuses every command and says so.
"""

import base64

from nebula_core.errors import SignatureRefused
from nebula_core.records.command import LONGEST_LIFE_SECONDS, Command, SignedCommand
from nebula_core.security.envelope import SigningKey, VerifyKeys, verified_payload

COMMAND_DOMAIN = b"nebula command v1\n"
#: How far the clocks of control process and node may be apart (reliability, row 19).
LEEWAY_SECONDS = 30.0


class CommandOutdated(SignatureRefused):
    """A command that is expired, or from the future: it was delivered late, or the two clocks differ."""

    code = "command_outdated"

    def __init__(self, message: str, command: Command, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        #: Its signature was right: it may be told that it was not obeyed.
        self.command = command


def sign_command(key: SigningKey, command: Command) -> SignedCommand:
    payload = command.to_json()
    signature = key.sign(COMMAND_DOMAIN + payload.encode())
    return SignedCommand(payload=payload, key_id=key.key_id, signature=base64.b64encode(signature).decode())


def verify_command(keys: VerifyKeys, signed: SignedCommand, *, node: str, now: float) -> Command:
    """The command, once it may be obeyed on `node` at `now` (Unix seconds). Raises SignatureRefused with the reason."""
    payload = verified_payload(keys, signed, COMMAND_DOMAIN, "command")
    try:
        command = Command.from_json(payload)
    except ValueError as error:
        raise SignatureRefused(
            "the command is signed but cannot be read", hint="Agent and control plane differ in version: update"
        ) from error
    if command.node != node:
        raise SignatureRefused(f"the command was made for node {command.node!r}, not {node!r}")
    if not 0 < command.expires_at - command.issued_at <= LONGEST_LIFE_SECONDS:
        raise SignatureRefused(f"the command does not end within {LONGEST_LIFE_SECONDS:g} s")
    late, early = now - command.expires_at, command.issued_at - now
    hint = "Compare the clocks of the control process and of this node (chrony, ntpd)"
    if late > LEEWAY_SECONDS:
        raise CommandOutdated(f"the command ended {late:.0f} s ago", command, hint=hint)
    if early > LEEWAY_SECONDS:
        raise CommandOutdated(f"the command is from {early:.0f} s in the future", command, hint=hint)
    return command
