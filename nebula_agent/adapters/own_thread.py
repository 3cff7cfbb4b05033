"""A thread for calls that may never return: whoever asks waits as long as it likes, and the process can still end."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


class OwnThread:
    """One call at a time, in order. The thread is started by the first call and is a daemon."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, call: Callable[[], Answer]) -> "asyncio.Future[Answer]":
        """What `call` returns or raises, on the loop of the caller."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()

        def settle(result: Answer | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type] # without an error there is a result

        def work() -> None:
            result: Answer | None = None
            error: Exception | None = None
            try:
                result = call()
            except Exception as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, error)

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._asks.put(work)
        return answer

    def close(self) -> None:
        """Ends the thread, unless it hangs: then it ends with the process."""
        self._asks.put(None)

    def _work(self) -> None:
        while (ask := self._asks.get()) is not None:
            try:
                ask()
            except RuntimeError:
                return  # the loop was closed between the look and the call
