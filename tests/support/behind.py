"""Servers behind the proxy and in front of it: what nginx, haproxy and uvicorn make of the same bytes.

Each forwards to (or is) a recorder, which keeps every request it is given with the connection it came on and answers
with the request's own id, so that an answer that went to the wrong request shows.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from tests.support.ports import free_port


class Seen(NamedTuple):
    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    #: The other end of the connection.
    peer: tuple[str, int] | None

    @property
    def request_id(self) -> str:
        return dict(self.headers).get(b"x-request-id", b"").decode("ascii")


@dataclass
class Recorder:
    """`seen` in the order in which requests were complete."""

    seen: list[Seen]
    port: int


def _free_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield  # pytest keeps its own


@contextlib.asynccontextmanager
async def recorder(http: Any = "h11") -> AsyncIterator[Recorder]:
    """An ASGI application on uvicorn; h11 reads heads another way than the proxy's own parser does."""
    listener = _free_socket()
    found = Recorder([], listener.getsockname()[1])

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        seen = Seen(
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            tuple(scope["headers"]),
            b"".join(parts),
            scope["client"],
        )
        found.seen.append(seen)
        raw = json.dumps({"id": seen.request_id, "bytes": len(seen.body)}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    config = uvicorn.Config(
        application, http=http, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=60
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.005)
        yield found
    finally:
        server.should_exit = server.force_exit = True
        await task


_NGINX = """
user root; worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 512; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; underscores_in_headers on; ignore_invalid_headers off;
    keepalive_timeout 60s; large_client_header_buffers 8 64k; client_max_body_size 20m;
    upstream behind {{ server 127.0.0.1:{behind}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port}; merge_slashes off;
        location / {{
            proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host nebula;
            proxy_ignore_client_abort on; proxy_buffering off; proxy_request_buffering off; proxy_next_upstream off;
            proxy_read_timeout 8s;
        }}
    }}
}}
"""

_HAPROXY = """
global
    maxconn 512
defaults
    mode http
    timeout connect 30s
    timeout client 10s
    timeout server 8s
    timeout http-keep-alive 60s
    option http-keep-alive
    http-reuse always
frontend front
    bind 127.0.0.1:{port}
    default_backend behind
backend behind
    server one 127.0.0.1:{behind}
"""


def missing(program: str) -> str | None:
    """Why `program` cannot be used here; None if it can."""
    return None if shutil.which(program) else f"no {program} on PATH: install Debian's package {program}"


@contextlib.asynccontextmanager
async def relay(program: str, behind: int, folder: Path) -> AsyncIterator[int]:
    """nginx or haproxy as a real process in front of the port `behind`; gives its own port."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test may wait for its disk
    config = folder / f"{program}.cfg"
    text = {"nginx": _NGINX, "haproxy": _HAPROXY}[program]
    config.write_text(text.format(folder=folder, port=port, behind=behind))
    command = {
        "nginx": ["nginx", "-p", str(folder), "-c", str(config)],
        "haproxy": ["haproxy", "-db", "-q", "-f", str(config)],
    }[program]
    log = (folder / f"{program}.log").open("wb")
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    log.close()
    try:
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None, (folder / f"{program}.log").read_text()
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()
