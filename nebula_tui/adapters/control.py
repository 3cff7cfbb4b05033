"""The TUI's door to the Control API: questions, actions with their plan, and the followed streams.

httpx is imported when the first call is made, so that importing the screens costs nothing. Every failure becomes an
error of this module with the next step in it; nothing of httpx leaves here.

`watch()` never ends by itself: it yields what the server says and, between connections, what became of the link, so
that the screen can show the age of everything while it reconnects (backoff 0.25 s … 2 s: GOALS wants recovery in 3 s).
A process that dies closes the connection; one that is frozen only falls silent. So after a second without a word the
server is asked something small: an answer proves that nothing has changed, none within `PROBE_SECONDS` is a lost link.
"""

import asyncio
import json
import ssl
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from nebula_core.errors import NebulaError
from nebula_core.records.base import Record
from nebula_core.records.decision import DecisionRecord
from nebula_core.records.event import Event
from nebula_core.records.views import (
    ClusterView,
    DeploymentView,
    ErrorBody,
    LogLine,
    NodeView,
    Page,
    PlanView,
    ReplicaView,
    RequestsPage,
    WatchDelta,
    WatchSnapshot,
    WhoAmI,
)
from nebula_core.wire.sse import Event as SseEvent
from nebula_core.wire.sse import TooLong
from nebula_tui.adapters.sse import decode

if TYPE_CHECKING:
    import httpx

R = TypeVar("R", bound=Record)

#: Followed streams carry a comment every 5 s; this long without a byte is a broken one.
SILENCE_SECONDS = 12.0
PROBE_AFTER_SECONDS = 1.2
#: Requests asked for at once: more than fit on any screen.
OPEN_ASKED = 250
LATEST_ASKED = 60
PROBE_SECONDS = 0.8
_END = SseEvent("", "end of stream")
_BACKOFF = (0.25, 0.5, 1.0, 2.0)


class Unreachable(NebulaError):
    """The Control API does not answer."""

    code = "unreachable"


class NotAllowed(NebulaError):
    """The key is not known or its role may not do this."""

    code = "not_allowed"


class NotFound(NebulaError):
    """There is no such thing."""

    code = "not_found"


class Refused(NebulaError):
    """The call was understood and turned away."""

    code = "refused"


class Garbled(NebulaError):
    """The answer is not what this version understands."""

    code = "garbled"


@dataclass(frozen=True, slots=True)
class Connected:
    """The watch is open; a snapshot follows."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Nothing changed, but the server is there."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The link broke; the next attempt comes in `retry_seconds`."""

    error: NebulaError
    retry_seconds: float


WatchMessage = Connected | Alive | Lost | WatchSnapshot | WatchDelta


class Control(Protocol):
    """What the screens need of a Control API: the real one below, or a fake one in tests."""

    async def whoami(self) -> WhoAmI: ...
    async def openai_base_url(self) -> str | None: ...
    def watch(self) -> AsyncIterator[WatchMessage]: ...
    def logs(self, replica: str, *, tail: int = 200, follow: bool = True) -> AsyncIterator[LogLine]: ...
    async def events(self, *, count: int = 200) -> tuple[Event, ...]: ...
    async def requests(self) -> RequestsPage: ...
    async def request(self, request_id: str) -> DecisionRecord: ...
    async def cancel(self, request_id: str, *, dry_run: bool) -> PlanView: ...
    async def scale(self, deployment: str, replicas: int, *, dry_run: bool) -> PlanView: ...
    async def restart(self, kind: str, name: str, *, dry_run: bool) -> PlanView: ...
    async def drain(self, kind: str, name: str, *, dry_run: bool) -> PlanView: ...
    async def cordon(self, node: str, *, dry_run: bool) -> PlanView: ...
    async def uncordon(self, node: str, *, dry_run: bool) -> PlanView: ...
    async def aclose(self) -> None: ...


class ControlClient:
    """One HTTP connection pool to one Control API."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        timeout_seconds: float = 10.0,
        silence_seconds: float = SILENCE_SECONDS,
        probe_after_seconds: float = PROBE_AFTER_SECONDS,
        ca_file: str | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._key = api_key
        self._timeout = timeout_seconds
        self._silence = silence_seconds
        self._probe_after = probe_after_seconds
        self._ca_file = ca_file
        self._http: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    # ------------------------------------------------------------------------------------------------- questions

    async def whoami(self) -> WhoAmI:
        return await self._get("/whoami", WhoAmI)

    async def cluster(self) -> ClusterView:
        return await self._get("/cluster", ClusterView)

    async def openai_base_url(self) -> str | None:
        """Where clients send chat requests, as the control process was told; None when it was not."""
        return (await self.cluster()).openai_base_url

    async def nodes(self) -> tuple[NodeView, ...]:
        return await self._list("/nodes", NodeView)

    async def deployments(self) -> tuple[DeploymentView, ...]:
        return await self._list("/deployments", DeploymentView)

    async def replicas(self) -> tuple[ReplicaView, ...]:
        return await self._list("/replicas", ReplicaView)

    async def events(self, *, count: int = 200) -> tuple[Event, ...]:
        """The newest, oldest first."""
        page = _decode(Page[Event], await self._call("GET", "/events", params={"limit": str(count)}))
        oldest_first = reversed(page.items)  # of two in the same moment the later one stays the later one
        return tuple(sorted(oldest_first, key=lambda event: event.at))

    async def requests(self) -> RequestsPage:
        """What is open in the proxies now, and what was recorded lately."""
        params = {"inflight": str(OPEN_ASKED), "latest": str(LATEST_ASKED)}
        return _decode(RequestsPage, await self._call("GET", "/requests", params=params))

    async def request(self, request_id: str) -> DecisionRecord:
        """Why it went where it went. Raises NotFound for one that is not open and left no record."""
        return await self._get(f"/requests/{quote(request_id, safe='')}", DecisionRecord)

    # --------------------------------------------------------------------------------------------------- actions

    async def cancel(self, request_id: str, *, dry_run: bool) -> PlanView:
        return await self._act(f"/requests/{quote(request_id, safe='')}/cancel", {}, dry_run=dry_run)

    async def scale(self, deployment: str, replicas: int, *, dry_run: bool) -> PlanView:
        return await self._act(f"/deployments/{deployment}/scale", {"replicas": replicas}, dry_run=dry_run)

    async def restart(self, kind: str, name: str, *, dry_run: bool) -> PlanView:
        """`kind` is deployment or replica."""
        return await self._act(f"/{kind}s/{name}/restart", {}, dry_run=dry_run)

    async def drain(self, kind: str, name: str, *, dry_run: bool) -> PlanView:
        """`kind` is node or replica."""
        return await self._act(f"/{kind}s/{name}/drain", {}, dry_run=dry_run)

    async def cordon(self, node: str, *, dry_run: bool) -> PlanView:
        return await self._act(f"/nodes/{node}/cordon", {}, dry_run=dry_run)

    async def uncordon(self, node: str, *, dry_run: bool) -> PlanView:
        return await self._act(f"/nodes/{node}/uncordon", {}, dry_run=dry_run)

    # --------------------------------------------------------------------------------------------------- streams

    async def watch(self) -> AsyncGenerator[WatchMessage, None]:
        """Ends only by being closed."""
        failures = 0
        while True:
            error: NebulaError
            try:
                async for message in self._watch_once():
                    if isinstance(message, WatchSnapshot):
                        failures = 0
                    yield message
                error = Unreachable(f"{self.url} ended the watch", hint="connecting again")
            except NebulaError as raised:
                error = raised
            wait = _BACKOFF[min(failures, len(_BACKOFF) - 1)]
            failures += 1
            yield Lost(error, wait)
            await asyncio.sleep(wait)

    async def _watch_once(self) -> AsyncIterator[WatchMessage]:
        async with self._stream("/watch", {}) as events:
            yield Connected()
            async for event in self._never_silent(events):
                if event is not None and event.event == "snapshot":
                    yield _decode(WatchSnapshot, event.data)
                elif event is not None and event.event == "delta":
                    yield _decode(WatchDelta, event.data)
                else:
                    yield Alive()

    async def _never_silent(self, events: AsyncIterator[SseEvent | None]) -> AsyncIterator[SseEvent | None]:
        """The events; in a silence, None for each proof of life. Raises Unreachable when there is none."""
        reading = asyncio.ensure_future(anext(events, _END))
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=self._probe_after)
                if not done:
                    await self._probe()
                    yield None
                    continue
                event = reading.result()
                if event is _END:
                    return
                reading = asyncio.ensure_future(anext(events, _END))
                yield event
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()  # told by the one who asked, or nobody listens any more

    async def _probe(self) -> None:
        import httpx

        try:
            # Any answer will do, also a refusal: the process is there and its loop turns.
            await self._client().get("/api/v1/whoami", timeout=PROBE_SECONDS)
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    async def logs(self, replica: str, *, tail: int = 200, follow: bool = True) -> AsyncGenerator[LogLine, None]:
        params = {"tail": str(tail), **({"follow": "1"} if follow else {})}
        async with self._stream(f"/replicas/{replica}/logs", params) as events:
            async for event in events:
                if event is not None and event.event == "line":
                    yield _decode(LogLine, event.data)
                elif event is not None and event.event == "error":
                    raise _refused(None, event.data)
                elif event is not None and event.event == "end":
                    raise NotFound(f"{replica} is gone, no more lines will come", hint=None)

    # -------------------------------------------------------------------------------------------------- plumbing

    async def _get(self, path: str, kind: type[R]) -> R:
        return _decode(kind, await self._call("GET", path))

    async def _list(self, path: str, kind: type[R]) -> tuple[R, ...]:
        items: list[R] = []
        cursor: str | None = None
        while True:
            raw = await self._call("GET", path, params={"cursor": cursor} if cursor else {})
            page = _decode(Page[kind], raw)  # type: ignore[valid-type]
            items.extend(page.items)
            if page.next is None or page.next == cursor:
                return tuple(items)
            cursor = page.next

    async def _act(self, path: str, body: Mapping[str, Any], *, dry_run: bool) -> PlanView:
        headers = {} if dry_run else {"idempotency-key": uuid.uuid4().hex}
        params = {"dry_run": "1"} if dry_run else {}
        return _decode(PlanView, await self._call("POST", path, params=params, body=body, headers=headers))

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        import httpx

        try:
            response = await self._client().request(
                method, f"/api/v1{path}", params=dict(params or {}), json=body, headers=dict(headers or {})
            )
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _refused(response.status_code, response.content)
        return response.content

    @asynccontextmanager
    async def _stream(self, path: str, params: Mapping[str, str]) -> AsyncIterator[AsyncIterator[SseEvent | None]]:
        import httpx

        timeout = httpx.Timeout(self._timeout, read=self._silence)
        try:
            async with self._client().stream("GET", f"/api/v1{path}", params=dict(params), timeout=timeout) as answer:
                if answer.is_error:
                    raise _refused(answer.status_code, await answer.aread())
                yield decode(answer.aiter_bytes())
        except TooLong as error:
            raise Garbled(f"{self.url}{path}: {error}", hint="is this the Control API's address?") from error
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _client(self) -> "httpx.AsyncClient":
        import httpx

        if self._http is None:
            headers = {"accept": "application/json"}
            if self._key:
                headers["authorization"] = f"Bearer {self._key}"
            verify: ssl.SSLContext | bool = True
            if self._ca_file:
                verify = ssl.create_default_context(cafile=self._ca_file)
            # Proxies of the environment are not for a cluster of one's own.
            self._http = httpx.AsyncClient(
                base_url=self.url, headers=headers, timeout=self._timeout, verify=verify, trust_env=False
            )
        return self._http

    def _unreachable(self, error: Exception) -> Unreachable:
        import httpx

        if isinstance(error, httpx.TimeoutException):
            what = "does not answer in time"
        elif isinstance(error, httpx.ConnectError):
            what = "refuses the connection"
        else:
            what = f"broke off ({error or type(error).__name__})"
        return Unreachable(f"{self.url} {what}", hint="is the control process running?")


def _decode(kind: type[R], raw: str | bytes) -> R:
    try:
        return kind.from_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Garbled(
            f"the answer is not a {kind.__name__}: {where}: {first['msg']}",
            hint="do TUI and control process have the same version?",
        ) from error


def _refused(status: int | None, content: str | bytes) -> NebulaError:
    """The error of a response: our envelope where it is one."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    try:
        body = json.loads(text)
        error = ErrorBody.model_validate(body.get("error", body))
        message, hint = error.message, error.hint
    except (ValueError, AttributeError):
        message, hint = f"HTTP {status}: {text[:200]}", "is this the Control API's address?"
    match status:
        case 401:
            return NotAllowed(message, hint=hint or "check the key of this context")
        case 403:
            return NotAllowed(message, hint=hint or "ask for a key with a higher role")
        case 404:
            return NotFound(message, hint=hint)
        case 503 | 504:
            return Unreachable(message, hint=hint)
        case _:
            return Refused(message, hint=hint)
