"""Who may call what: every route with every role, every method and every twisted path; hosts, origins, bodies."""

import asyncio

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from nebula_core.records.access import Role
from nebula_proxy.control.api import application
from nebula_proxy.control.guard import PUBLIC, GuardedRoute, require_roles, with_role
from tests.support.control import API, RunningControl

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB")
#: What stands in for the parts of a path: nothing that exists, so that whoever gets through changes nothing.
PARTS = {
    "node": "nope",
    "gpu": "0",
    "name": "nope",
    "replica": "nope-r1",
    "key_id": "nope",
    "operation": "nope",
    "request_id": "nope",
}


def concrete(route: APIRoute) -> str:
    path = route.path_format
    for name, value in PARTS.items():
        path = path.replace("{" + name + "}", value)
    assert "{" not in path
    return path


def routes_of(control: RunningControl) -> list[GuardedRoute]:
    routes = [route for route in application(control.desk).routes if isinstance(route, GuardedRoute)]
    assert len(routes) > 30
    return routes


async def raw(
    control: RunningControl, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, bytes]:
    """Status and what was answered in the first moments, of bytes no client library has tidied up."""
    lines = {"host": "127.0.0.1", "connection": "close", **(headers or {})}
    if body and "transfer-encoding" not in lines:
        lines.setdefault("content-length", str(len(body)))
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", control.port)
    try:
        async with asyncio.timeout(30):
            writer.write(head.encode("latin-1") + b"\r\n" + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            return int(answer.split(b" ", 2)[1]), answer + await reader.read(2000)
    finally:
        writer.close()


def authorization(control: RunningControl, role: Role | None) -> dict[str, str]:
    return {} if role is None else {"authorization": f"Bearer {control.tokens[role]}"}


class RouteTable:
    """The routes as they are served, by concrete path."""

    def __init__(self, control: RunningControl) -> None:
        self.paths: dict[str, list[GuardedRoute]] = {}
        for route in routes_of(control):
            self.paths.setdefault(concrete(route), []).append(route)

    def role(self, path: str, method: str) -> Role | str:
        """The role of the route that the router picks: the one with the method, or the first with the path."""
        matching = self.paths[path]
        role = next((route.role for route in matching if method in route.methods), matching[0].role)
        assert role is not None
        return role

    def methods(self, path: str) -> set[str]:
        return {method for route in self.paths[path] for method in route.methods}


async def test_every_route_keeps_to_its_role(control: RunningControl) -> None:
    """Roles and no role × routes × methods: 401 and 403 exactly where the role is missing, whatever the method."""
    table = RouteTable(control)
    cells = 0
    for path in table.paths:
        for role in (None, *Role):
            for method in METHODS:
                status, _ = await raw(control, method, path, authorization(control, role))
                cells += 1
                where = f"{role} {method} {path}: {status}"
                needed = table.role(path, method)
                if status == 400 or method == "FROB":
                    assert method in {"TRACE", "FROB"}, where
                elif needed == PUBLIC or (isinstance(needed, Role) and role is not None and role.includes(needed)):
                    assert status not in {401, 403}, where
                    assert (status == 405) == (method not in table.methods(path)), where
                else:
                    assert status == (401 if role is None else 403), where
    assert cells > 1000


MUTATIONS = (
    "/{}",
    "//{}",
    "/.{}",
    "/./{}",
    "/x/../{}",
    "/%2e%2e/{}",
    "{}/",
    "{}//",
    "{}/.",
    "{}/..",
    "{}%2f",
    "{}%00",
    "{}%20",
    "{};x=1",
    "{}?role=admin",
    "{}#x",
    "{}\\",
    "/API{}",
    "http://evil{}",
    "*{}",
)


async def test_no_spelling_of_a_path_gets_past_the_check(control: RunningControl) -> None:
    for route in routes_of(control):
        if route.role == PUBLIC:
            continue
        path = concrete(route)
        method = next(iter(route.methods))
        weaker = None if route.role is Role.CLIENT else list(Role)[list(Role).index(route.role) - 1]  # type: ignore[arg-type]
        for role in {None, weaker}:
            for mutation in MUTATIONS:
                target = mutation.format(path if "/{}" not in mutation else path.lstrip("/"))
                status, answer = await raw(control, method, target, authorization(control, role))
                assert status in {400, 401, 403, 404, 405}, f"{role} {method} {target}: {answer[:300]!r}"


async def test_a_route_without_a_role_does_not_start(control: RunningControl) -> None:
    async def endpoint() -> None: ...

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.add_api_route("/x", endpoint, route_class_override=GuardedRoute)
    with pytest.raises(TypeError, match="/x declares no role"):
        require_roles(app.routes)
    with_role(endpoint, Role.VIEWER)
    require_roles(app.routes)
    app.router.add_api_route("/y", endpoint)
    with pytest.raises(TypeError, match="not guarded"):
        require_roles(app.routes)


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer nbl_abcd", "Basic YWRtaW46YWRtaW4=", "nbl_x", "Bearer nbl_abcdef_" + "a" * 43],
)
async def test_bad_credentials(control: RunningControl, value: str) -> None:
    status, answer = await raw(control, "GET", f"{API}/whoami", {"authorization": value})
    assert status == 401
    assert b"www-authenticate: Bearer" in answer


async def test_two_credentials_are_none(control: RunningControl) -> None:
    token = control.tokens[Role.ADMIN]
    status, _ = await raw(
        control, "GET", f"{API}/whoami", {"authorization": f"Bearer {token}", "Authorization": f"Bearer {token}"}
    )
    assert status in {400, 401}


async def test_loopback_and_forwarded_headers_are_no_credential(control: RunningControl) -> None:
    for name in ("x-forwarded-for", "x-real-ip", "x-nebula-role", "x-nebula-principal", "forwarded"):
        status, _ = await raw(control, "GET", f"{API}/nodes", {name: "127.0.0.1"})
        assert status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8082", 200),
        ("[::1]:8082", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.1:8082.evil.example", 400),
        ("localhost@evil.example", 400),
        ("", 421),
    ],
)
async def test_only_its_own_names(control: RunningControl, host: str, status: int) -> None:
    """DNS rebinding: a page of evil.example that resolves to 127.0.0.1 still says evil.example."""
    headers = {**authorization(control, Role.ADMIN), "host": host}
    got, _ = await raw(control, "GET", f"{API}/whoami", headers)
    assert got == status


async def test_pages_of_others_are_refused(control: RunningControl) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:8082", ""):
        headers = {**authorization(control, Role.ADMIN), "origin": origin}
        status, answer = await raw(control, "GET", f"{API}/whoami", headers)
        assert status == 403
        assert b"allowed_origins" in answer


async def test_only_json_and_not_too_much(control: RunningControl) -> None:
    headers = authorization(control, Role.ADMIN)
    path = f"{API}/deployments/chat/scale"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"):
        status, _ = await raw(control, "POST", path, {**headers, "content-type": kind}, b'{"replicas": 1}')
        assert status == 415
    status, _ = await raw(control, "POST", path, headers, b'{"replicas": 1}')
    assert status == 415
    json = {**headers, "content-type": "application/json"}
    status, _ = await raw(control, "POST", path, {**json, "content-length": "9999999"}, b"{")
    assert status == 413
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, _ = await raw(control, "POST", path, {**json, "transfer-encoding": "chunked"}, chunk * 20)
    assert status == 413
    status, _ = await raw(control, "POST", path, {**json, "content-encoding": "gzip"}, b"x")
    assert status == 415


async def test_request_ids_are_kept_or_made(control: RunningControl) -> None:
    headers = authorization(control, Role.VIEWER)
    _, kept = await raw(control, "GET", f"{API}/whoami", {**headers, "x-request-id": "abc.1-2_3"})
    assert b"x-request-id: abc.1-2_3\r\n" in kept
    _, made = await raw(control, "GET", f"{API}/whoami", {**headers, "x-request-id": "a b;c"})
    assert b"x-request-id: ctl-" in made
    assert b"cache-control: no-store" in made


async def test_the_description_is_complete_and_gated(control: RunningControl) -> None:
    async with control.client(Role.VIEWER) as api:
        description = (await api.get(f"{control.url}/openapi.json")).json()
        assert description["openapi"].startswith("3.1")
        for route in routes_of(control):
            for method in route.methods:
                operation = description["paths"][route.path_format][method.lower()]
                assert operation["x-nebula-role"] == route.role
                assert ("security" in operation) == (route.role != PUBLIC)
        identifiers = [one["operationId"] for path in description["paths"].values() for one in path.values()]
        assert len(identifiers) == len(set(identifiers))
        page = await api.get(f"{control.url}/docs")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    async with control.client(None) as stranger:
        assert (await stranger.get(f"{control.url}/openapi.json")).status_code == 401
        # A browser cannot send a key with its first visit: the same page asks for it.
        shell = await stranger.get(f"{control.url}/docs")
        assert (shell.status_code, shell.text) == (401, page.text)
        assert "script-src 'sha256-" in shell.headers["content-security-policy"]
        assert "://" not in shell.text.replace("http://www.w3.org", "")
