"""A control process in the test's own loop: real store, real planner, a real socket; agents and proxies are modelled."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from nebula_core.errors import NebulaError
from nebula_core.records.access import Role
from nebula_core.records.compact import NodeDelta
from nebula_core.records.event import ChangeKind
from nebula_core.security.credentials import mint_key
from nebula_core.security.envelope import SigningKey
from nebula_core.store.connection import connect
from nebula_core.store.store import Store
from nebula_proxy.control.app import ControlProcess, ControlServer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.planner import PlannerSettings
from nebula_proxy.control.signing import SigningKeys
from nebula_proxy.settings import ControlSettings, ProxySettings
from tests.support.cluster_model import ClusterModel, make_deployment, make_node
from tests.support.plain_http import NO_TLS
from tests.support.store import StoreServer

KEY = SigningKey.generate()
API = "/api/v1"


class _TestServer(ControlServer):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # pytest keeps its own


class RunningControl:
    """`model` is the cluster around it: agents that obey what is in the store when `turn` lets them."""

    def __init__(self, process: ControlProcess, store: Store, port: int, tokens: dict[Role, str]) -> None:
        self.process = process
        self.store = store
        self.port = port
        self.tokens = tokens
        self.model = ClusterModel()

    @property
    def desk(self) -> Desk:
        return self.process.desk

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(
        self, role: Role | None = Role.ADMIN, *, headers: dict[str, str] | None = None, **options: Any
    ) -> httpx.AsyncClient:
        key = {} if role is None else {"authorization": f"Bearer {self.tokens[role]}"}
        headers = {**key, **(headers or {})}
        return httpx.AsyncClient(
            base_url=self.url + API, headers=headers, timeout=30, trust_env=False, verify=NO_TLS, **options
        )

    # -- the cluster around it -------------------------------------------------------------------------------------

    async def add_node(self, name: str, gpus: int = 4) -> None:
        node = make_node(name, gpus)
        self.model.add_node(node)
        revision = await self.store.put(ChangeKind.NODE, name, node)
        await self.seen(revision)
        await self.report()

    async def deploy(self, name: str = "chat", replicas: int = 1, **spec: Any) -> None:
        deployment = make_deployment(name, replicas, **spec)
        await self.seen(await self.store.put(ChangeKind.DEPLOYMENT, name, deployment))

    async def turn(self) -> None:
        """Agents and proxies do what is asked of them and say so."""
        self.model.view = self.process.watcher.snapshot
        self.model.obey()
        await self.report()

    async def report(self) -> None:
        self.model.view = self.process.watcher.snapshot
        for report in self.model.node_reports():
            await self.store.publish_report(report)
        for proxy in self.model.proxy_reports():
            await self.store.publish_proxy(proxy)

    async def until(self, holds: Any, what: str, seconds: float = 30.0) -> None:
        """Turns of the cluster until a condition on the views holds."""
        deadline = time.monotonic() + seconds
        while not holds(self.desk.look()):
            if time.monotonic() > deadline:
                look = self.desk.look()
                raise AssertionError(f"not within {seconds} s: {what}; {look.deployments} {look.replicas}")
            await self.turn()
            await asyncio.sleep(0.02)

    async def heartbeats(self) -> None:
        """What agents say each second though nothing has changed: a node is not silent because a test takes its time."""
        while True:
            await asyncio.sleep(0.5)
            heard = self.process.watcher.snapshot.reports
            with contextlib.suppress(NebulaError):  # the store is away
                for name in [name for name, node in self.model.nodes.items() if node.up and name in heard]:
                    await self.store.publish_delta(NodeDelta(name, heard[name].sequence + 1))

    async def ready(self, name: str = "chat", replicas: int | None = None) -> None:
        def holds(look: Any) -> bool:
            view = look.deployments.get(name)
            return view is not None and view.replicas_ready == (view.replicas_wanted if replicas is None else replicas)

        await self.until(holds, f"{name} is ready")

    async def seen(self, revision: int) -> None:
        await self.process.watcher.wait_for(lambda view: view.revision >= revision, timeout=30)


@contextlib.asynccontextmanager
async def running_control(
    server: StoreServer,
    *,
    nodes: int = 2,
    control: dict[str, Any] | None = None,
    synced: bool = True,
    planner: PlannerSettings | None = None,
    store_settings: dict[str, Any] | None = None,
) -> AsyncIterator[RunningControl]:
    """Serves until the block ends; then nothing of it may be left."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = ProxySettings(public_url="http://127.0.0.1:8081", control=ControlSettings(port=port, **(control or {})))
    async with (
        await connect(server.settings(**(store_settings or {}))) as store,
        await connect(server.settings()) as own,
    ):
        tokens: dict[Role, str] = {}
        if synced:
            await own.ensure_meta()
            for role in Role:
                token, record = mint_key(f"{role}-key", role, now=time.time(), created_by="test")
                tokens[role] = token
                await own.put(ChangeKind.KEY, record.id, record, expected_generation=0)
        process = ControlProcess(
            settings,
            store,
            SigningKeys(KEY),
            planner_settings=planner or PlannerSettings(coalesce_seconds=0.01, listen_seconds=0),
        )
        process.server.__class__ = _TestServer
        task = asyncio.create_task(process.serve([listener]))
        running = RunningControl(process, own, port, tokens)
        heartbeats = asyncio.create_task(running.heartbeats())
        try:
            await _until(lambda: process.server.started or task.done())
            if synced:
                await process.watcher.synced(30)
                for number in range(1, nodes + 1):
                    await running.add_node(f"n{number}")
                await _until(lambda: process.planner.is_leader)
            yield running
        finally:
            heartbeats.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heartbeats
            process.server.should_exit = True
            await asyncio.wait_for(task, 30)


async def _until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come to pass")
        await asyncio.sleep(0.005)


class Events:
    """Server-sent events of one open response, decoded; reading waits at most `seconds`."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.comments = 0

    async def next(self, seconds: float = 30.0) -> tuple[str, Any]:
        async with asyncio.timeout(seconds):
            name, data = "message", ""
            async for line in self._lines:
                if line.startswith(":"):
                    self.comments += 1
                elif line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    data = line[6:]
                elif not line and data:
                    return name, json.loads(data)
            raise AssertionError("the stream has ended")

    async def opened(self, seconds: float = 30.0) -> None:
        """Waits for the comment with which a stream begins."""
        async with asyncio.timeout(seconds):
            async for line in self._lines:
                if line.startswith(":"):
                    return

    async def until(self, holds: Any, seconds: float = 30.0) -> tuple[str, Any]:
        """The first event for which `holds(name, data)`."""
        async with asyncio.timeout(seconds):
            while True:
                name, data = await self.next(seconds)
                if holds(name, data):
                    return name, data


@contextlib.asynccontextmanager
async def following(client: httpx.AsyncClient, path: str, **params: Any) -> AsyncIterator[Events]:
    async with client.stream("GET", path, params=params) as response:
        assert response.status_code == 200, await response.aread()
        yield Events(response)
