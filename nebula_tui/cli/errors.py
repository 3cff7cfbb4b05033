"""How a command ends: the exit codes of the contract, and the one error every verb raises."""

from enum import IntEnum


class Exit(IntEnum):
    """CONTRACT, 5."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5
    CONFLICT = 6


class CommandError(Exception):
    """Ends the command: one line and a hint on stderr, and this exit code."""

    def __init__(self, message: str, *, code: Exit = Exit.FAILED, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint


#: HTTP status of the Control API → how the command ends.
BY_STATUS = {
    400: Exit.USAGE,
    401: Exit.NOT_ALLOWED,
    403: Exit.NOT_ALLOWED,
    404: Exit.NOT_FOUND,
    409: Exit.CONFLICT,
    412: Exit.CONFLICT,
    422: Exit.USAGE,
    503: Exit.UNREACHABLE,
    504: Exit.UNREACHABLE,
}
