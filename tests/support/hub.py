"""A model hub on loopback: the routes, ranges, redirects, etags and refusals of Hugging Face's API, and of ModelScope's."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """What is served, and what goes wrong. `files` by repository and path."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    token: str | None = None
    gated: bool = False
    #: Path → bytes of a body after which the connection is cut, once per entry of the list.
    cuts: dict[str, list[int]] = field(default_factory=dict)
    #: Path → the body that is sent instead of the listed one.
    wrong: dict[str, bytes] = field(default_factory=dict)
    #: Path → statuses to answer first.
    statuses: dict[str, list[int]] = field(default_factory=dict)
    #: Path → where it is said to be instead.
    redirects: dict[str, str] = field(default_factory=dict)
    no_ranges: bool = False
    #: A body stops after so many bytes until `release` is set.
    hold_after: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    #: (path, Range header) of each file that was asked for.
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    tokens_at_cdn: list[str | None] = field(default_factory=list)
    #: Authorization header of every request, the CDN's too.
    tokens: list[str | None] = field(default_factory=list)
    url: str = ""
    cdn_url: str = ""

    @property
    def env(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "MODELSCOPE_ENDPOINT": self.url}

    def siblings(self, repo: str) -> list[dict[str, Any]]:
        rows = []
        for path, content in self.files[repo].items():
            row: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}  # noqa: S324 - git's own
            if path.endswith((".safetensors", ".gguf", ".bin")):
                row["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
            rows.append(row)
        return rows


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self) -> None:
        self.hub.tokens.append(self.headers.get("authorization"))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if path.startswith("/cdn/"):
            self.hub.tokens_at_cdn.append(self.headers.get("authorization"))
            _, _, rest = path.partition("/cdn/")
            repo, _, name = rest.partition("::")
            self._file(repo, name)
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
        elif path.startswith("/api/v1/models/"):
            self._modelscope(path.removeprefix("/api/v1/models/"), query)
        elif "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            revision, _, name = rest.partition("/")
            if self._refused(repo) or revision != self.hub.commit:
                if revision != self.hub.commit:
                    self._json(404, {}, {"x-error-code": "RevisionNotFound"})
                return
            if name.endswith(".safetensors") or name in self.hub.redirects:
                self.send_response(302)
                where = self.hub.redirects.get(name, f"{self.hub.cdn_url}/cdn/{repo}::{name}")
                self.send_header("location", where)
                self.send_header("content-length", "0")
                self.end_headers()
            else:
                self._file(repo, name)
        else:
            self._json(404, {}, {})

    def _refused(self, repo: str) -> bool:
        hub = self.hub
        if hub.token is not None and self.headers.get("authorization") != f"Bearer {hub.token}":
            self._json(401, {"error": "Invalid username or password."}, {})
            return True
        if hub.gated:
            self._json(403, {}, {"x-error-code": "GatedRepo", "x-error-message": "Access is restricted"})
            return True
        if repo not in hub.files:
            self._json(404, {}, {"x-error-code": "RepoNotFound"})
            return True
        return False

    def _info(self, rest: str) -> None:
        repo, _, revision = rest.partition("/revision/")
        if self._refused(repo):
            return
        if revision not in {"", "main", self.hub.commit}:
            self._json(404, {}, {"x-error-code": "RevisionNotFound"})
            return
        self._json(200, {"id": repo, "sha": self.hub.commit, "siblings": self.hub.siblings(repo)}, {})

    def _modelscope(self, rest: str, query: dict[str, list[str]]) -> None:
        repo, _, verb = rest.partition("/repo")
        if repo not in self.hub.files:
            self._json(200, {"Code": 10010205001, "Message": "not found", "Data": None, "Success": False}, {})
        elif verb == "/files":
            rows = [
                {"Path": path, "Size": len(body), "Sha256": hashlib.sha256(body).hexdigest(), "Type": "blob"}
                for path, body in self.hub.files[repo].items()
            ]
            rows.append({"Path": "sub", "Size": 0, "Type": "tree"})
            self._json(200, {"Code": 200, "Data": {"Files": rows}, "Success": True}, {})
        else:
            self._file(repo, query["FilePath"][0])

    def _file(self, repo: str, name: str) -> None:
        hub = self.hub
        asked = self.headers.get("range")
        hub.asked.append((name, asked))
        if hub.statuses.get(name):
            self._json(hub.statuses[name].pop(0), {}, {})
            return
        whole = hub.wrong.get(name, hub.files.get(repo, {}).get(name))
        if whole is None:
            self._json(404, {}, {"x-error-code": "EntryNotFound"})
            return
        start = 0
        if asked is not None and not hub.no_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(whole):
                self._json(416, {}, {})
                return
        body = whole[start:]
        self.send_response(206 if start else 200)
        self.send_header("etag", f'"{hashlib.md5(whole).hexdigest()}"')  # noqa: S324 - an etag
        self.send_header("accept-ranges", "bytes")
        self.send_header("content-length", str(len(body)))
        if start:
            self.send_header("content-range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        if hub.cuts.get(name):
            self.wfile.write(body[: hub.cuts[name].pop(0)])
            self.close_connection = True
            return
        hold_after = hub.hold_after
        if hold_after is not None and len(body) > hold_after:
            self.wfile.write(body[:hold_after])
            self.wfile.flush()
            hub.held.set()
            hub.release.wait(300)
            body = body[hold_after:]
        self.wfile.write(body)

    def _json(self, status: int, value: object, headers: dict[str, str]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    # Another host by name, as a CDN is.
    hub.cdn_url = f"http://localhost:{server.server_port}"
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def tensors(count: int, seed: int = 1) -> bytes:
    """A safetensors file with one tensor of `count` bytes that cannot be guessed."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    body = b"".join(hashlib.sha256(f"{seed}-{index}".encode()).digest() for index in range(count // 32 + 1))[:count]
    return len(header).to_bytes(8, "little") + header + body
