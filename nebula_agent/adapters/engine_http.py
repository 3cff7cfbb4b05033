"""An engine over HTTP as the agent asks it: health, the models it lists, one token, its figures."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from nebula_core.runtime.http import FailureKind, Headers, UpstreamClient, UpstreamError

HEALTH_SECONDS = 5.0
#: A scrape of a busy vLLM took 1.2 s (engines, 2.6).
SCRAPE_SECONDS = 5.0
#: The first token of a model that has just been loaded, on a CPU.
TOKEN_SECONDS = 60.0
_MOST_BYTES = 8 * 1024 * 1024


class Answer(StrEnum):
    """What came of a call."""

    YES = "yes"
    #: It answers, and the answer is no.
    NO = "no"
    #: Nobody listens.
    REFUSED = "refused"
    #: No answer in time, or none that can be read.
    SILENT = "silent"


class Said(NamedTuple):
    answer: Answer
    detail: str = ""
    body: bytes = b""


class EngineHttp:
    """Calls to the engines of this node over kept connections."""

    def __init__(self, client: UpstreamClient | None = None) -> None:
        self._client = client or UpstreamClient(connect_timeout_seconds=2.0, max_idle_per_address=4)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def health(self, host: str, port: int, path: str) -> Said:
        return await self._call("GET", host, port, path, None, HEALTH_SECONDS)

    async def lists_model(self, host: str, port: int, model: str, key: str | None) -> Said:
        """Whether `/v1/models` names the model."""
        said = await self._call("GET", host, port, "/v1/models", key, HEALTH_SECONDS)
        if said.answer is not Answer.YES:
            return said
        try:
            listed = [str(entry["id"]) for entry in json.loads(said.body)["data"]]
        except (ValueError, KeyError, TypeError):
            return Said(Answer.NO, "/v1/models cannot be read")
        if model in listed:
            return said
        return Said(Answer.NO, f"/v1/models lists {', '.join(listed[:3]) or 'nothing'}, not {model}")

    async def one_token(
        self,
        host: str,
        port: int,
        path: str,
        body: Mapping[str, object],
        key: str | None,
        *,
        seconds: float = TOKEN_SECONDS,
    ) -> Said:
        """Whether the request is answered as it should be, within so many seconds."""
        said = await self._call("POST", host, port, path, key, seconds, json.dumps(body).encode())
        if said.answer is not Answer.YES:
            return said
        try:
            answer = json.loads(said.body)
            good = bool(answer.get("choices") or answer.get("data"))
        except (ValueError, AttributeError):
            good = False
        return said if good else Said(Answer.NO, f"{path} gave no token")

    async def figures(self, host: str, port: int, key: str | None, *, seconds: float = SCRAPE_SECONDS) -> Said:
        """The text of `/metrics`. The key goes along: llama.cpp wants it there too."""
        return await self._call("GET", host, port, "/metrics", key, seconds)

    async def info(self, host: str, port: int, path: str, key: str | None) -> Mapping[str, object] | None:
        """What it says of itself, as a JSON object; None where there is no such path."""
        said = await self._call("GET", host, port, path, key, HEALTH_SECONDS)
        if said.answer is not Answer.YES:
            return None
        try:
            found = json.loads(said.body)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    async def ask(self, method: str, host: str, port: int, path: str, key: str | None) -> Said:
        """One quick question."""
        return await self._call(method, host, port, path, key, HEALTH_SECONDS)

    async def _call(
        self, method: str, host: str, port: int, path: str, key: str | None, seconds: float, body: bytes = b""
    ) -> Said:
        headers: Headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        if body:
            headers.append((b"content-type", b"application/json"))
        try:
            reply = await self._client.fetch(
                method, host, port, path, headers=headers, body=body, timeout=seconds, max_bytes=_MOST_BYTES
            )
        except TimeoutError:
            return Said(Answer.SILENT, f"{path} did not answer within {seconds:g} s")
        except UpstreamError as error:
            if error.failure.kind is FailureKind.REFUSED:
                return Said(Answer.REFUSED, "nobody listens on its port yet")
            return Said(Answer.SILENT, f"{path}: {error.failure.detail}")
        if reply.status == 200:
            return Said(Answer.YES, body=reply.body)
        return Said(Answer.NO, f"{path} answered {reply.status}", reply.body)
