"""A data plane that listens to a Control API through the store, as a worker process does; its engine is scripted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from nebula_core.runtime.tasks import TaskSupervisor
from nebula_proxy.decisions.sampling import Sampling
from nebula_proxy.traffic.inquiries import Inquiries
from nebula_proxy.traffic.recorder import Recorder
from nebula_proxy.traffic.reporting import Reporter
from tests.support.control import RunningControl
from tests.support.data_plane import MODEL, RunningPlane, endpoint, model, running_plane, until
from tests.support.scripted_engine import STREAM_HEAD, Conversation, ScriptedEngine, chunked, event

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "canary"}], "stream": True}


@dataclass
class Worker:
    """A data plane that listens to what the Control API says, as a worker does."""

    running: RunningPlane
    engine: ScriptedEngine
    inquiries: Inquiries

    def ask(self, **headers: str) -> "asyncio.Task[httpx.Response]":
        async def post() -> httpx.Response:
            async with self.running.client() as client:
                return await client.post("/v1/chat/completions", json=CHAT, headers=headers)

        return asyncio.create_task(post())

    async def streaming(self, count: int = 1) -> None:
        await until(lambda: sum(one.phase == "streaming" for one in self.running.plane.ledger) == count)


async def begin_and_wait(conversation: Conversation) -> None:
    await conversation.send(STREAM_HEAD + chunked(event("x"), end=False))
    await conversation.gone.wait()


@contextlib.asynccontextmanager
async def worker(control: RunningControl, name: str = "w1") -> AsyncIterator[Worker]:
    recorder = Recorder(Sampling(ratio=1.0, most=1000))
    async with ScriptedEngine(begin_and_wait) as engine:
        one = model(endpoint("m-r0", engine.port))
        async with running_plane(one, recorder=recorder) as running, TaskSupervisor(name) as tasks:
            running.plane.proxy = name
            inquiries = Inquiries(running.plane, control.store)
            reporter = Reporter(running.plane, control.store, lambda: 0)
            await reporter.publish()
            tasks.repeat("inbox", inquiries.listen)
            tasks.every("show", 0.1, inquiries.show)
            tasks.every("records", 0.05, lambda: recorder.flush(control.store))
            tasks.every("report", 1.0, reporter.publish)
            await until(lambda: name in control.desk.live.proxies())
            yield Worker(running, engine, inquiries)


def only_workers(control: RunningControl) -> None:
    """The proxies of the modelled cluster answer nothing; asking them would be waiting."""
    control.model.proxies.clear()
    every = control.desk.live.proxies

    def workers() -> list[str]:
        return [name for name in every() if not name.startswith("proxy-")]

    control.desk.live.proxies = workers  # type: ignore[method-assign]
