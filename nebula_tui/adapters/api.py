"""The CLI's door to the Control API: one blocking call per verb, answers as plain JSON values.

httpx is imported only when a call is made, so that `nebula version` and shell completion stay quick.
"""

import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import httpx


class ApiError(Exception):
    """The API answered with an error, or did not answer (`status` is None)."""

    def __init__(self, status: int | None, message: str, *, code: str = "error", hint: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.hint = hint


class Api:
    """`url` is the Control API's address without `/api/v1`."""

    def __init__(self, url: str, key: str | None, *, timeout_seconds: float = 10.0, ca_file: str | None = None) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout_seconds
        self._ca_file = ca_file
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._client is not None:
            self._client.close()

    def get(self, path: str, **params: str | int | None) -> Any:
        return self.call("GET", path, params=params)

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | None] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The decoded answer, None for an empty one. Raises ApiError."""
        import httpx

        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            response = self._open().request(
                method, f"/api/v1{path}", params=given, json=body, headers=dict(headers or {})
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _refused(response.status_code, response.content)
        return response.json() if response.content else None

    def events(self, path: str, **params: str | int | None) -> Iterator[tuple[str, Any]]:
        """Server-sent events of a following call as (event, decoded data), until the server ends it."""
        import httpx

        given = {name: value for name, value in params.items() if value is not None}
        # A silent stream still carries a comment every few seconds: no byte for 30 s means the server is gone.
        timeout = httpx.Timeout(self._timeout, read=30.0)
        try:
            with self._open().stream("GET", f"/api/v1{path}", params=given, timeout=timeout) as response:
                if response.is_error:
                    raise _refused(response.status_code, response.read())
                yield from _server_sent(response.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _open(self) -> "httpx.Client":
        import httpx

        if self._client is None:
            headers = {"accept": "application/json"}
            if self._key:
                headers["authorization"] = f"Bearer {self._key}"
            verify: Any = True
            if self._ca_file:
                import ssl

                verify = ssl.create_default_context(cafile=self._ca_file)
            self._client = httpx.Client(base_url=self.url, headers=headers, timeout=self._timeout, verify=verify)
        return self._client

    def _unreachable(self, error: Exception) -> ApiError:
        import httpx

        what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else f"is not reachable: {error}"
        return ApiError(None, f"{self.url} {what}", code="unreachable", hint="is the control process running?")


def _server_sent(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    event = "message"
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield event, json.loads("\n".join(data))
            event, data = "message", []
        elif line.startswith("event:"):
            event = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def _refused(status: int, content: bytes) -> ApiError:
    try:
        error = json.loads(content)["error"]
        return ApiError(status, error["message"], code=error.get("code", "error"), hint=error.get("hint"))
    except (ValueError, KeyError, TypeError):
        text = content[:200].decode("utf-8", "replace")
        return ApiError(status, f"HTTP {status}: {text}", hint="is this the Control API's address?")
