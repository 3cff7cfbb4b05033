"""Disks, asked in threads of their own: one that hangs holds up who waits for it, and nothing else.

**Theory.** A mount whose server is gone does not fail, it stays silent: the call never returns, no signal ends it, and the
thread that made it is lost until the server is back. On the event loop that is the end of every report and probe. In the
threads that everybody shares (`asyncio.to_thread`) it is the end of those a little later: they are few, the end of an
engine and the resolving of a name need them too, and a process cannot exit before they have ended. So each door to a disk
has `DiskThreads` of its own: a bounded number of daemon threads that come when there is something to do and go when there is
nothing, so that a hanging mount of models delays no book of a replica.

- `do` is for what must happen: it waits as long as the disk takes, and within one lane (a replica's files) everything
  happens in the order in which it was asked for, also what somebody asked for who was cancelled meanwhile: a file never
  gets back what it said before.
- `look` is for what a decision wants to know: it waits so long and no longer. While the disk owes the answer to a question,
  whoever asks the same waits for that one, so a disk that hangs is asked once, and takes one thread for each question.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from nebula_core.errors import NebulaError

P = ParamSpec("P")
Answer = TypeVar("Answer")

MOST_THREADS = 16
#: A thread with nothing to do ends after so long.
IDLE_SECONDS = 10.0
#: Whoever asks again what a silent disk was asked before waits no longer than this.
AGAIN_SECONDS = 0.05


class DiskSilent(NebulaError):
    """A disk has not answered in the time there was. It may yet."""

    code = "disk_silent"


@dataclass(eq=False, slots=True)
class _Call:
    call: Callable[[], Any]
    lane: str
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    asked_at: float

    def settle(self, result: object, error: BaseException | None) -> None:
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(result)


class DiskThreads:
    """Threads for one disk, or for the disks behind one door."""

    def __init__(self, name: str, most_threads: int = MOST_THREADS) -> None:
        self._name = name
        self._most = most_threads
        self._lock = threading.Condition()
        #: What is to be done, by lane; a lane is here while one of its calls runs or waits.
        self._lanes: dict[str, deque[_Call]] = {}
        #: Lanes whose first call may be made.
        self._ready: deque[str] = deque()
        self._threads = self._idle = 0
        self._looks: dict[object, tuple[float, asyncio.Future[Any]]] = {}

    async def do(self, lane: str, call: Callable[P, Answer], *given: P.args, **named: P.kwargs) -> Answer:
        """What `call` returns or raises, once all that was asked for in this lane before is done."""
        return await self.begin(lane, call, *given, **named)

    def begin(
        self, lane: str, call: Callable[P, Answer], *given: P.args, **named: P.kwargs
    ) -> "asyncio.Future[Answer]":
        """As `do`, in its turn from now on whether or not anybody awaits it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        order = _Call(lambda: call(*given, **named), lane, loop, answer, time.monotonic())
        with self._lock:
            calls = self._lanes.get(lane)
            if calls is not None:
                calls.append(order)
                return answer
            self._lanes[lane] = deque((order,))
            self._ready.append(lane)
            if self._idle >= len(self._ready):
                self._lock.notify()
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name=f"disk-{self._name}", daemon=True).start()
        return answer

    async def look(self, seconds: float, call: Callable[..., Answer], *given: object) -> Answer:
        """What `call(*given)` returns or raises, within so many seconds. Raises DiskSilent. It should change nothing."""
        question, now = (call, given), time.monotonic()
        asked_at, answer = self._looks.get(question, (now, None))
        if answer is None:
            answer = self.begin(f"look {id(question)}", call, *given)
            self._looks[question] = (now, answer)
            answer.add_done_callback(lambda done: self._answered(question, done))
        await asyncio.wait({answer}, timeout=max(AGAIN_SECONDS, asked_at + seconds - now))
        if not answer.done():
            raise DiskSilent(f"the disk has not answered for {seconds:g} s", hint="Look at its mount and its server")
        result: Answer = answer.result()
        return result

    def waiting_seconds(self) -> float:
        """For how long the oldest of what was asked for has not been done; 0 when nothing waits."""
        with self._lock:
            oldest = min((calls[0].asked_at for calls in self._lanes.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def _answered(self, question: object, answer: asyncio.Future[Any]) -> None:
        del self._looks[question]
        if not answer.cancelled():
            # Read here too: whoever asked may have gone.
            answer.exception()

    # --- in a thread

    def _work(self) -> None:
        while (order := self._next()) is not None:
            result: object = None
            error: BaseException | None = None
            try:
                result = order.call()
            except BaseException as raised:
                error = raised
            self._done(order.lane)
            try:
                order.loop.call_soon_threadsafe(order.settle, result, error)
            except RuntimeError:
                continue  # that loop is closed: nobody waits
            finally:
                # Nothing of it is kept while the next one is awaited.
                del order, result, error

    def _next(self) -> _Call | None:
        """The next call whose turn it is; None: there was none for a while, and this thread ends."""
        with self._lock:
            deadline = time.monotonic() + IDLE_SECONDS
            while not self._ready:
                self._idle += 1
                self._lock.wait(max(0.0, deadline - time.monotonic()))
                self._idle -= 1
                if not self._ready and time.monotonic() >= deadline:
                    self._threads -= 1
                    return None
            return self._lanes[self._ready.popleft()][0]

    def _done(self, lane: str) -> None:
        with self._lock:
            calls = self._lanes[lane]
            calls.popleft()
            if calls:
                self._ready.append(lane)
                self._lock.notify()
            else:
                del self._lanes[lane]
