"""Supervised tasks: named, restarted when an iteration raises, reported when they do not end.

An eternal loop is one iteration called again and again; the iteration is a function that a test calls by hand. An
iteration that raises is logged and tried again after a pause that doubles up to half a minute and is forgotten after
a success, so one bad message never ends a process and a broken dependency is not hammered.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog

from nebula_core.runtime.clock import Clock, SystemClock

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
#: An eternal coroutine that ran this long before it failed begins again with the first pause.
HEALTHY_SECONDS = 60.0

Iteration = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class TaskState:
    """What a supervised task has been through, for health checks and metrics."""

    runs: int = 0
    failures: int = 0
    #: Failures since the last success.
    failing: int = 0
    last_error: str | None = None


def pause_after(failing: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(failing - 1, 30)))


class TaskSupervisor:
    """Owns the tasks of one process or one part of it: none outlives the `async with`."""

    def __init__(self, name: str, clock: Clock | None = None, *, grace_seconds: float = 5.0) -> None:
        self.name = name
        self.states: dict[str, TaskState] = {}
        #: Tasks that were still running after the last `stop`.
        self.stuck: tuple[str, ...] = ()
        self._clock = clock or SystemClock()
        self._grace_seconds = grace_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def every(self, name: str, seconds: float, iteration: Iteration) -> asyncio.Task[None]:
        """Calls `iteration` at once and then `seconds` after each beginning; late ones are not made up for."""
        return self._start(name, self._repeat(name, iteration, seconds))

    def repeat(self, name: str, iteration: Iteration) -> asyncio.Task[None]:
        """Calls `iteration` for ever; it does its own waiting."""
        return self._start(name, self._repeat(name, iteration, 0.0))

    def eternal(self, name: str, run: Iteration) -> asyncio.Task[None]:
        """Keeps a coroutine running that should never end: begun again, with a pause, when it raises or returns."""
        return self._start(name, self._keep(name, run))

    def once(self, name: str, work: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """A task that may end; a failure is logged, not raised."""
        return self._start(name, self._once(name, work))

    async def stop(self, grace_seconds: float | None = None) -> tuple[str, ...]:
        """Cancels all and waits; answers (and logs) the names of those that did not end in time."""
        self._closing = True
        tasks = {task for task in self._tasks if task is not asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._grace_seconds if grace_seconds is None else grace_seconds)
        self.stuck = tuple(sorted(task.get_name() for task in tasks if not task.done()))
        if self.stuck:
            log.error("tasks_stuck", supervisor=self.name, tasks=list(self.stuck))
        return self.stuck

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._closing:
            work.close()
            raise RuntimeError(f"{self.name} is stopping: {name} is not started")
        self.states.setdefault(name, TaskState())
        task = asyncio.create_task(work, name=f"{self.name}:{name}")
        # The set holds the task: a loop keeps only a weak reference.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _repeat(self, name: str, iteration: Iteration, seconds: float) -> None:
        state = self.states[name]
        while True:
            began = self._clock.monotonic()
            try:
                await iteration()
            except Exception as error:
                await self._failed(name, state, error)
            else:
                _succeeded(name, state)
                # An iteration that never waits must not starve the loop, nor its own cancellation.
                await asyncio.sleep(0)
                await self._clock.sleep(max(0.0, began + seconds - self._clock.monotonic()))

    async def _keep(self, name: str, run: Iteration) -> None:
        state = self.states[name]
        while True:
            began = self._clock.monotonic()
            state.runs += 1
            try:
                await run()
                raise RuntimeError("an eternal task returned")  # noqa: TRY301 - the same path as any failure
            except Exception as error:
                if self._clock.monotonic() - began >= HEALTHY_SECONDS:
                    state.failing = 0
                await self._failed(name, state, error)

    async def _once(self, name: str, work: Coroutine[Any, Any, object]) -> None:
        state = self.states[name]
        try:
            await work
        except Exception as error:
            state.failures += 1
            state.last_error = repr(error)
            log.exception("task_failed", supervisor=self.name, task=name)
        else:
            state.runs += 1

    async def _failed(self, name: str, state: TaskState, error: Exception) -> None:
        state.failures += 1
        state.failing += 1
        state.last_error = repr(error)
        pause = pause_after(state.failing)
        # The first failure with its traceback, the following ones in one line: a store that is away is no news.
        log.error(
            "task_failed",
            supervisor=self.name,
            task=name,
            error=repr(error),
            failing=state.failing,
            pause_seconds=pause,
            exc_info=error if state.failing == 1 else None,
        )
        await self._clock.sleep(pause)


def _succeeded(name: str, state: TaskState) -> None:
    state.runs += 1
    if state.failing:
        log.info("task_recovered", task=name, failures=state.failing)
        state.failing = 0
