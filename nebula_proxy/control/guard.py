"""Who may call what: one gate before the application, one check on the route that was resolved.

    bytes ─► Gate: plain path? our Host? no foreign Origin? JSON, and not too much of it? whose key?
          ─► router resolves ─► GuardedRoute: may this role? ─► endpoint

The role is asked of the route object that is about to be run, so no spelling of a path and no other method can reach
an endpoint past its check; a path that resolves to nothing needs a key as well. A route without a role does not start
(`require_roles`). Nothing is trusted for where it comes from: loopback is no credential, there are no cookies.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from fastapi import HTTPException
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nebula_core.records.access import Principal, Role
from nebula_proxy.control.answers import refusal_answer
from nebula_proxy.control.refusals import CallRefused, forbidden, store_away, unauthenticated

log = structlog.get_logger(__name__)

#: A role that everybody has.
PUBLIC: Final = "public"

#: Key of the ASGI scope under which the caller is found.
CALLER: Final = "nebula.caller"

_ROLE_MARK: Final = "__nebula_role__"
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_ODD_PATH = re.compile(rb"//|\\|/\.\.?(/|$)|%2[eEfF]|%5[cC]|%00|[\x00-\x20\x7f-\xff]").search
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls; `principal` is None without a valid key."""

    request_id: str
    principal: Principal | None
    #: The keys are not known yet: nobody can be told apart.
    blind: bool = False


def with_role(endpoint: Callable[..., Any], role: Role | str) -> Callable[..., Any]:
    """The endpoint with its role declared on it."""
    # Bound methods carry no attributes of their own.
    target = getattr(endpoint, "__func__", endpoint)
    setattr(target, _ROLE_MARK, role)
    return endpoint


class GuardedRoute(APIRoute):
    """A route that asks for its role before anything else, also for methods it does not have."""

    @property
    def role(self) -> Role | str | None:
        return getattr(self.endpoint, _ROLE_MARK, None)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        authorise(scope, self.role)
        await super().handle(scope, receive, send)


def authorise(scope: Scope, role: Role | str | None) -> None:
    """Raises CallRefused unless the caller may. No role declared means nobody may."""
    if role == PUBLIC:
        return
    caller: Caller = scope[CALLER]
    if caller.blind:
        raise store_away(None)
    principal = caller.principal
    if principal is None:
        raise unauthenticated()
    if not isinstance(role, Role) or not principal.role.includes(role):
        needed = role.value if isinstance(role, Role) else "a role nobody has"
        log.warning("call_refused", key_id=principal.key_id, role=principal.role, needed=needed, path=scope["path"])
        raise forbidden(principal.name, principal.role, needed)


async def unknown_path(scope: Scope, _receive: Receive, _send: Send) -> None:
    """What the router falls back to: strangers are not told which paths there are."""
    authorise(scope, Role.CLIENT)
    raise CallRefused(
        404, "not_found", f"there is no {scope['path'][:128]!r} here", hint="GET /openapi.json lists what there is"
    )


def require_roles(routes: Iterable[BaseRoute]) -> None:
    """Raises TypeError for a route that is not guarded or says no role."""
    for route in routes:
        if not isinstance(route, GuardedRoute):
            raise TypeError(f"{route!r} is not guarded: declare it as an operation")
        if route.role != PUBLIC and not isinstance(route.role, Role):
            raise TypeError(f"{route.path} declares no role")


class Gate:
    """The outermost ASGI layer. `identify` answers the key's owner, `blind` whether the keys are unknown."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        identify: Callable[[str], Principal | None],
        blind: Callable[[], bool],
        mint_id: Callable[[], str],
        snapshot_age: Callable[[], float | None],
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        max_body_bytes: int = 1024 * 1024,
    ) -> None:
        self._app = app
        self._identify = identify
        self._blind = blind
        self._mint_id = mint_id
        self._snapshot_age = snapshot_age
        self._hosts = _LOOPBACK | {host.lower() for host in allowed_hosts}
        self._origins = frozenset(allowed_origins)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not spoken here")
        headers = _Headers(scope["headers"])
        given = headers.one(b"x-request-id")
        request_id = given if given is not None and _REQUEST_ID(given) else self._mint_id()
        answer = self._with_headers(send, request_id)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal_answer(refusal)(scope, receive, answer)
            return
        scope[CALLER] = Caller(request_id, self._principal(headers), self._blind())
        body = _Body(receive, self._max_body_bytes)
        await self._app(scope, body.receive if scope["method"] in _WITH_BODY else receive, answer)

    def _refusal(self, scope: Scope, headers: "_Headers") -> CallRefused | None:
        if _ODD_PATH(scope.get("raw_path") or scope["path"].encode("latin-1", "replace")) is not None:
            return _bad("the path is not in its plain form", "no `//`, `..`, backslash or encoded slash")
        host = headers.one(b"host")
        if host is None or _without_port(host) not in self._hosts:
            return CallRefused(
                421,
                "misdirected",
                f"{(host or 'no host')[:128]!r} is not a name of this Control API",
                hint="add the name to `control.allowed_hosts`",
            )
        origin = headers.one(b"origin")
        if headers.count(b"origin") and origin not in self._origins:
            return CallRefused(
                403,
                "origin_not_allowed",
                f"pages of {(origin or 'several origins')[:128]!r} may not call this API",
                hint="add the origin to `control.allowed_origins`",
            )
        if scope["method"] in _WITH_BODY:
            return self._body_refusal(headers)
        return None

    def _body_refusal(self, headers: "_Headers") -> CallRefused | None:
        length = headers.one(b"content-length") or "0"
        has_body = length != "0" or headers.count(b"transfer-encoding")
        kind = (headers.one(b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json" and (has_body or kind):
            return CallRefused(
                415,
                "unsupported_media_type",
                f"a body of type {kind[:64] or 'unknown'!r} is not read",
                hint="send JSON with `content-type: application/json`",
            )
        if headers.count(b"content-encoding"):
            return CallRefused(415, "unsupported_encoding", "encoded bodies are not read", hint="send plain JSON")
        if not length.isdecimal() or int(length) > self._max_body_bytes:
            return _too_large(self._max_body_bytes)
        return None

    def _principal(self, headers: "_Headers") -> Principal | None:
        scheme, _, token = (headers.one(b"authorization") or "").partition(" ")
        return self._identify(token.strip()) if scheme.lower() == "bearer" else None

    def _with_headers(self, send: Send, request_id: str) -> Send:
        age = self._snapshot_age()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [
                    (b"x-request-id", request_id.encode()),
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if age is not None:
                    # How old what was answered is: above a second or two the store is away.
                    extra.append((b"x-nebula-snapshot-age", b"%.1f" % age))
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        return answer


class _Headers:
    """Header values as text; one that is there twice counts as none."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in raw:
            self._values.setdefault(name.lower(), []).append(value)

    def one(self, name: bytes) -> str | None:
        found = self._values.get(name, ())
        return found[0].decode("latin-1") if len(found) == 1 else None

    def count(self, name: bytes) -> int:
        return len(self._values.get(name, ()))


class _Body:
    """Counts what comes, whatever Content-Length said."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                # FastAPI lets only its own kind of exception through while it reads a body.
                raise HTTPException(413, _too_large(self._limit).message)
        return message


def _without_port(host: str) -> str:
    return re.sub(r":\d{1,5}$", "", host.lower())


def _bad(message: str, hint: str) -> CallRefused:
    return CallRefused(400, "invalid_request", message, hint=hint)


def _too_large(limit: int) -> CallRefused:
    return CallRefused(413, "request_too_large", f"the body is larger than {limit} bytes", hint="send less")
