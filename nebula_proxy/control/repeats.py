"""Calls that are sent twice: the second one with the same `Idempotency-Key` gets the answer of the first.

Kept in memory, for ten minutes, per API key: enough for a client that lost the answer. The records themselves are
compare-and-set, so after a restart of this process a repeated call meets a conflict or finds nothing left to do.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from nebula_core.records.base import Record
from nebula_core.runtime.clock import Clock
from nebula_proxy.control.refusals import CallRefused

KEPT_SECONDS = 600.0
KEPT = 1024

Answer = TypeVar("Answer", bound=Record)


@dataclass(slots=True)
class _Known:
    fingerprint: str
    until: float
    answer: "asyncio.Future[Any]"


class Repeats:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    async def once(
        self, key_id: str, idempotency_key: str | None, fingerprint: str, work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Does the work, or answers what it answered before. A call that failed may be tried again.

        Raises CallRefused when the key was used for another call.
        """
        if idempotency_key is None:
            return await work()
        self._forget()
        place = (key_id, idempotency_key)
        known = self._known.get(place)
        if known is not None:
            if known.fingerprint != fingerprint:
                raise CallRefused(
                    422,
                    "idempotency_key_reused",
                    "this Idempotency-Key was used for another call",
                    param="idempotency-key",
                    hint="make a new key for each call you mean",
                )
            answer: Answer = await asyncio.shield(known.answer)
            return answer
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting when it fails; asyncio would complain that it was never asked.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._known[place] = _Known(fingerprint, self._clock.monotonic() + KEPT_SECONDS, future)
        try:
            result = await work()
        except BaseException as error:
            del self._known[place]
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()
            raise
        future.set_result(result)
        return result

    def _forget(self) -> None:
        now = self._clock.monotonic()
        while self._known:
            first = next(iter(self._known.values()))
            # The oldest comes first; one that is under way is never forgotten.
            if not first.answer.done() or (first.until > now and len(self._known) < KEPT):
                return
            self._known.popitem(last=False)
