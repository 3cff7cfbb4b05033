"""An object store on loopback: moto's S3 behind a door that notes what is asked, and goes wrong where a test says so."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

KEY_ID, SECRET, SESSION = "AKIATESTONLY", "secret-of-the-test", "session-of-the-test"


def s3_error(status: str, code: str, **more: str) -> "Answer":
    """As S3 says no."""
    inner = "".join(f"<{name}>{text}</{name}>" for name, text in more.items())
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{inner}</Error>".encode()
    return Answer(status, body)


@dataclass
class Answer:
    """What is answered instead of moto's own; one that `hangs`, not before the test is over."""

    status: str
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("content-type", "application/xml")])
    hangs: bool = False


@dataclass
class ObjectStore:
    url: str = ""
    port: int = 0
    #: (method, path, headers) of each request.
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    #: Asked for each request before moto is; None lets it through.
    instead: Callable[[str, str], Answer | None] = lambda _method, _path: None
    client: Any = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": SESSION,
        }

    def put(self, bucket: str, files: dict[str, bytes], **how: Any) -> None:
        self._make(bucket)
        for key, body in files.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=body, **how)

    def put_raw(self, bucket: str, files: dict[str, bytes]) -> None:
        """Quicker, and under any key: past the server, which takes a path for what it usually means."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        self._make(bucket)
        for key, body in files.items():
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, body)

    def _make(self, bucket: str) -> None:
        if bucket not in {each["Name"] for each in self.client.list_buckets()["Buckets"]}:
            self.client.create_bucket(Bucket=bucket)

    def gets(self, name: str) -> list[str | None]:
        """The Range of each GET of an object whose key ends so."""
        return [headers.get("range") for method, path, headers in self.asked if method == "GET" and path.endswith(name)]


@cache
def _moto() -> Any:
    """One for all tests of a process: it is a second to make, and its state is one for all anyway."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)


@cache
def _session() -> Any:
    import botocore.session

    return botocore.session.Session()


@contextmanager
def storing() -> Iterator[ObjectStore]:
    import botocore.config
    from moto.backends import get_backend
    from werkzeug.serving import WSGIRequestHandler, make_server

    store, app = ObjectStore(), _moto()

    def door(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        headers = {
            name[5:].lower().replace("_", "-"): text for name, text in environ.items() if name.startswith("HTTP_")
        }
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if "the-test" not in headers.get("user-agent", ""):
            store.asked.append((method, path, headers))
            other = store.instead(method, path)
            if other is not None:
                if other.hangs:
                    store.over.wait()
                start(other.status, [*other.headers, ("content-length", str(len(other.body)))])
                return [] if method == "HEAD" else [other.body]
        answer: Iterable[bytes] = app(environ, start)
        return answer

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            pass

    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    store.port = server.server_port
    store.url = f"http://127.0.0.1:{server.server_port}"
    store.client = _session().create_client(
        "s3",
        endpoint_url=store.url,
        region_name="us-east-1",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        config=botocore.config.Config(user_agent="the-test", s3={"addressing_style": "path"}),
    )
    try:
        yield store
    finally:
        store.over.set()
        store.client.close()
        get_backend("s3").reset()
        server.shutdown()
        server.server_close()
        thread.join(5)
