"""Calls that are turned away: status, code, and the next step for whoever made them."""

import difflib
from collections.abc import Iterable, Mapping

from nebula_core.errors import NebulaError
from nebula_core.records.store_memory import StoreDoubt


class CallRefused(NebulaError):
    """An answer other than the one asked for; nothing was changed."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def not_found(kind: str, name: str, known: Iterable[str]) -> CallRefused:
    """Names what is spelled nearly alike, or else a few of those there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        hint = f"did you mean {', '.join(close)}?"
    elif names:
        hint = f"there are: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    else:
        hint = f"there is no {kind} at all"
    return CallRefused(404, f"{kind}_not_found", f"there is no {kind} {name[:128]!r}", hint=hint)


def invalid(message: str, *, param: str | None = None, hint: str | None = None) -> CallRefused:
    return CallRefused(422, "invalid", message, param=param, hint=hint)


def conflict(message: str, *, hint: str, generation: int | None = None) -> CallRefused:
    """Trying the same again cannot help: the caller has to look first."""
    headers = {"x-should-retry": "false"}
    if generation is not None:
        headers["etag"] = f'"{generation}"'
    return CallRefused(409, "conflict", message, hint=hint, headers=headers)


def unauthenticated() -> CallRefused:
    return CallRefused(
        401,
        "invalid_api_key",
        "the API key is missing, unknown, expired or revoked",
        hint="send `Authorization: Bearer nbl_…`; an admin makes keys with `nebula keys create`",
        headers={"www-authenticate": "Bearer"},
    )


def forbidden(name: str, role: str, needed: str) -> CallRefused:
    return CallRefused(
        403, "role_too_low", f"the key {name!r} is {role}, this needs {needed}", hint="ask an admin for another key"
    )


def store_away(age: float | None) -> CallRefused:
    known = "nothing is known yet" if age is None else f"what is shown is {age:.0f} s old"
    return CallRefused(
        503,
        "store_unavailable",
        f"the store does not answer: nothing can be changed, {known}",
        hint="start the store, or correct store.url of the control process; running models go on serving",
        headers={"retry-after": "2"},
    )


def store_in_doubt(doubt: StoreDoubt) -> CallRefused:
    how = "without what it held" if doubt is StoreDoubt.EMPTIED else "as an older copy of itself"
    return CallRefused(
        503,
        f"store_{doubt.value}",
        f"the store came back {how}: nothing is changed in it, and nothing is stopped",
        hint="put the store's own files back and start it again, or write back what runs: `nebula adopt --store --dry-run`",
    )
