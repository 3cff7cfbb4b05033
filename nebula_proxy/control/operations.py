"""One operation of the API: method, path, role, endpoint; resources list them, `api` makes routes of them."""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Header, Query, Request
from pydantic import BaseModel

from nebula_core.records.access import Principal, Role
from nebula_proxy.control.actions import Call
from nebula_proxy.control.changes import ANY_GENERATION
from nebula_proxy.control.guard import CALLER, Caller
from nebula_proxy.control.refusals import invalid


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    endpoint: Callable[..., Any]
    role: Role | str
    summary: str
    #: What it answers, for the description; endpoints encode by themselves.
    answer: Any = None
    #: Below `/api/v1`, or at the root.
    root: bool = False
    media_type: str = "application/json"


class Resource(Protocol):
    def operations(self) -> Sequence[Operation]: ...


async def principal_of(request: Request) -> Principal:
    """The caller, whom the route has let in."""
    caller: Caller = request.scope[CALLER]
    if caller.principal is None:
        raise RuntimeError("a public operation has no principal")
    return caller.principal


async def call_of(
    request: Request,
    dry_run: Annotated[bool, Query(description="Answer the plan and change nothing.")] = False,
    idempotency_key: Annotated[
        str | None,
        Header(description="The same key again gets the first answer.", pattern=r"^[\x21-\x7e]{1,128}$"),
    ] = None,
    if_match: Annotated[
        str | None, Header(description="Generation the caller has read; 0: there is none; *: there is one.")
    ] = None,
) -> Call:
    """What every mutating operation is told of its call."""
    body = await request.body()
    path = request.scope["path"]
    parts = (request.method, path, if_match or "", str(dry_run))
    return Call(
        principal=await principal_of(request),
        request_id=request.scope[CALLER].request_id,
        what=f"{request.method} {path}",
        fingerprint=hashlib.sha256("\n".join(parts).encode() + b"\n" + body).hexdigest(),
        dry_run=dry_run,
        idempotency_key=None if dry_run else idempotency_key,
        expected=parse_generation(if_match),
        body=body,
        at=request.app.state.clock.wall(),
    )


Calling = Annotated[Call, Depends(call_of)]
Calls = Annotated[Principal, Depends(principal_of)]


def parse_generation(if_match: str | None) -> int | None:
    """Of `3`, `"3"` or `*`. Raises CallRefused."""
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return ANY_GENERATION
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isdecimal() or len(text) > 15:
        raise invalid(
            f"If-Match {if_match[:64]!r} is no generation", param="if-match", hint="send the number that GET answers"
        )
    return int(text)


def known_fields(model: type[BaseModel], body: bytes) -> None:
    """Raises CallRefused for a name the model does not have: a misspelt one that is ignored costs an evening.

    Records let unknown names pass, because a newer process may write them; a person's file must not.
    """
    given = json.loads(body) if body else {}
    for path, name, known in _unknown(model, given, ""):
        raise invalid(f"there is no {path}{name}", param=f"{path}{name}", hint=_nearest(name, known))


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(known))}"


def _unknown(model: type[BaseModel], given: Any, path: str) -> Iterator[tuple[str, str, set[str]]]:
    if not isinstance(given, Mapping):
        return
    names = set(model.model_fields)
    for name, value in given.items():
        if name not in names:
            yield path, str(name)[:64], names
            continue
        inner = _model_in(model.model_fields[name].annotation)
        if inner is None:
            continue
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _unknown(inner, item, f"{path}{name}[{index}].")
        else:
            yield from _unknown(inner, value, f"{path}{name}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X`, `X | None` or `tuple[X, …]`; none inside a mapping, whose names are the operator's own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if getattr(annotation, "__origin__", None) is dict:
            return None
        found = _model_in(part)
        if found is not None:
            return found
    return None
