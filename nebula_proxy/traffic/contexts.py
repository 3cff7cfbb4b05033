"""How many tokens fit into each engine (`max_model_len`), asked once for every start of one, when somebody needs it.

A stream whose client set no limit of tokens runs until the context is full; who goes on with it must say a number.
"""

import asyncio

import msgspec
import structlog

from nebula_core.runtime.http import UpstreamClient, UpstreamError
from nebula_proxy.traffic.routing_table import Route

log = structlog.get_logger(__name__)

ASK_SECONDS = 5.0


class _Model(msgspec.Struct):
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_decoder = msgspec.json.Decoder(_Models)


class Contexts:
    """Context lengths by model: replicas of one model have the same."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._known: dict[str, int | None] = {}
        self._epochs: dict[str, str | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, route: Route) -> int | None:
        """Tokens; None while nobody has said."""
        return self._known.get(route.endpoint.model)

    def want(self, route: Route) -> None:
        """Somebody may need it: asks, if this start of this engine was not asked yet."""
        endpoint = route.endpoint
        if endpoint.replica in self._epochs and self._epochs[endpoint.replica] == endpoint.engine_epoch:
            return
        self._epochs[endpoint.replica] = endpoint.engine_epoch
        task = asyncio.get_running_loop().create_task(self._ask(route), name=f"context of {endpoint.replica}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, route: Route) -> None:
        host, port = route.address
        try:
            answer = await self._client.fetch(
                "GET", host, port, "/v1/models", headers=route.authorization(), timeout=ASK_SECONDS
            )
            models = _decoder.decode(answer.body).data if answer.status == 200 else []
        except (UpstreamError, TimeoutError, OSError, msgspec.DecodeError) as error:
            self._epochs.pop(route.replica, None)
            log.info("context_unknown", replica=route.replica, error=str(error))
            return
        lengths = [each.max_model_len for each in models if each.max_model_len is not None]
        if lengths:
            self._known[route.endpoint.model] = min(lengths)

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
