"""The errors a person may meet: each says what is wrong and what to do next.

Expected outcomes (a rejected request, a placement that fits nowhere) are return values, not exceptions.
An exception of this tree carries `hint`, the next step, and `code`, a stable word for scripts.
"""


class NebulaError(Exception):
    """Something a person can act on; `hint` is the next step."""

    code = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class StoreUnavailable(NebulaError):
    """The store does not answer; serving goes on from the last snapshot."""

    code = "store_unavailable"


class StoreUnfit(NebulaError):
    """The store answers but must not be used as it is configured; the hint is the line to change."""

    code = "store_unfit"


class Conflict(NebulaError):
    """Somebody else changed the record first: read it again and decide anew."""

    code = "conflict"


class Fenced(NebulaError):
    """A newer leader exists: this one must stop writing."""

    code = "fenced"


class SignatureRefused(NebulaError):
    """A signed record is not what it claims: forged, for another node, or older than what was obeyed."""

    code = "signature_refused"


class SettingsError(NebulaError):
    """A setting is unknown or has an impossible value."""

    code = "bad_setting"
