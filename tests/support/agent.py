"""A node agent for tests: a real process on a real store, a leader that signs placements, and what became of them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.placement import Placement, SignedPlacement, Wanted
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.security.envelope import SigningKey, sign_placement
from nebula_core.security.sealing import SealingKeyPair, unseal
from nebula_core.store.store import Store
from tests.support.ports import free_ports

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T] | T], what: str, seconds: float = 45.0) -> T:
    """Looks again and again until there is something true to see."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if isinstance(seen, Awaitable):
            seen = await seen
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.02)


class Cluster:
    """The control plane's side: keys, and placements signed with them."""

    def __init__(self, directory: Path, store: Store) -> None:
        self.directory = directory
        self.store = store
        self.signing = SigningKey.generate()
        self.sealing = SealingKeyPair.generate()
        self.epoch = 0
        self.verify_keys = directory / "verify.keys"
        self.verify_keys.write_text(f"{self.signing.public_base64}\n")
        self.sealing_public = directory / "sealing.pub"
        self.sealing_public.write_text(f"{self.sealing.public_base64}\n")
        self._agents: list[AgentProcess] = []

    async def lead(self) -> int:
        """Becomes leader (again): a new epoch."""
        await self.store.release_lease("test")
        epoch = await self.store.acquire_lease("test", 3600.0, above=self.epoch)
        assert epoch is not None
        self.epoch = epoch
        return epoch

    def placement(self, replica: str = "chat-r1", node: str = "n1", **changes: Any) -> Placement:
        spec = DeploymentSpec.model_validate(
            {"source": "sim", "engine": "simulated", "gpus": 0, "args": {"preset": "instant"}} | changes.pop("spec", {})
        )
        values = {
            "replica": replica,
            "deployment": replica.rpartition("-r")[0],
            "node": node,
            "generation": 1,
            "spec": spec,
            "epoch": self.epoch,
            "revision": 0,
        }
        return Placement.model_validate(values | changes)

    async def place(self, placement: Placement) -> Placement:
        """Signs it as of now and writes it as the leader does."""
        if not self.epoch:
            await self.lead()
        current = placement.model_copy(update={"epoch": self.epoch, "revision": await self.store.revision() + 1})
        await self.write(current.replica, sign_placement(self.signing, current))
        return current

    async def write(self, replica: str, signed: SignedPlacement | None) -> None:
        if not self.epoch:
            await self.lead()
        await self.store.apply_placements(self.epoch, [(replica, signed)])

    async def want(self, placement: Placement, wanted: Wanted) -> Placement:
        return await self.place(placement.model_copy(update={"wanted": wanted}))

    async def remove(self, replica: str) -> None:
        await self.write(replica, None)

    async def report(self, node: str = "n1") -> NodeReport | None:
        raw = await self.store._commands.ask("GET", f"nebula:v1:report:{node}")
        return None if raw is None else NodeReport.from_json(raw)

    async def status(self, replica: str = "chat-r1", node: str = "n1") -> ReplicaStatus | None:
        report = await self.report(node)
        if report is None:
            return None
        return next((status for status in report.replicas if status.id == replica), None)

    async def until(
        self, phase: Phase, replica: str = "chat-r1", node: str = "n1", seconds: float = 60
    ) -> ReplicaStatus:
        async def reached() -> ReplicaStatus | None:
            status = await self.status(replica, node)
            return status if status is not None and status.phase is phase else None

        try:
            return await eventually(reached, f"{replica} is {phase.value}", seconds)
        except AssertionError as error:
            logs = "\n".join(agent.log[-4000:] for agent in self._agents)
            raise AssertionError(f"{error}; it is {await self.status(replica, node)}\n{logs}") from None

    async def failed(self, replica: str = "chat-r1", node: str = "n1") -> ReplicaStatus:
        """As soon as its first failure is told: `first_failure_reason` stays, its phase is `failed` for a second only."""

        async def told() -> ReplicaStatus | None:
            status = await self.status(replica, node)
            return status if status is not None and status.first_failure_reason is not None else None

        return await eventually(told, f"{replica} has failed")

    async def returned(self, agent: "AgentProcess") -> NodeReport:
        """The first report of this process of an agent: until then there is that of the one before it."""

        async def told() -> NodeReport | None:
            report = await self.report(agent.settings["node"])
            return report if report is not None and report.agent_pid == agent.pid and not report.leaving else None

        return await eventually(told, f"agent {agent.pid} reports")

    def key_of(self, status: ReplicaStatus) -> str:
        assert status.endpoint is not None
        assert status.endpoint.sealed_key is not None
        return unseal(
            self.sealing, status.endpoint.sealed_key, context=f"{status.id}|{status.engine_epoch}".encode()
        ).decode()

    def settings(self, node: str = "n1", **changes: Any) -> dict[str, Any]:
        first = free_ports(40)
        values: dict[str, Any] = {
            "node": node,
            "data_dir": str(self.directory / node),
            "port_range": [first, first + 39],
            "gpus": "none",
            "verify_keys": str(self.verify_keys),
            "sealing_public_key": str(self.sealing_public),
            "term_seconds": 3.0,
            "store": {"url": self.store.settings.url},
            # What else runs on this machine is none of a test's, unless it says so.
            "discovery": {"enabled": False},
        }
        return values | changes

    def agent(
        self, node: str = "n1", *, env: dict[str, str] | None = None, audit: Path | None = None, **changes: Any
    ) -> "AgentProcess":
        agent = AgentProcess(self.directory, self.settings(node, **changes), env, audit)
        self._agents.append(agent)
        return agent

    def close(self) -> None:
        for agent in self._agents:
            agent.close()


class AgentProcess:
    """`python -m nebula_agent run`, with everything it started gone at the end of the test.

    `audit` is a file for what its loop asks of disks, see `support/disk_audit`.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict[str, Any],
        env: dict[str, str] | None = None,
        audit: Path | None = None,
    ) -> None:
        import tomli_w

        self.settings = settings
        self.data = Path(settings["data_dir"])
        self.config = directory / f"agent-{settings['node']}.toml"
        self.config.write_text(tomli_w.dumps(settings))
        self.log_file = directory / f"agent-{settings['node']}.log"
        self._env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self._module = ["nebula_agent"] if audit is None else ["tests.support.disk_audit", str(audit)]

    def start(self) -> Self:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._module, "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def engines(self) -> list[psutil.Process]:
        """Every process of this agent's engines: by their marker, and by the sessions of those that show it."""
        mark = self.data / "agent_id"
        if not mark.exists():
            return []
        agent_id = mark.read_text().strip()
        sessions: dict[int, int] = {}
        everyone: dict[int, psutil.Process] = {}
        marked: set[int] = set()
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                everyone[process.pid] = process
                sessions[process.pid] = os.getsid(process.pid)
                if process.environ().get("NEBULA_ENGINE", "").startswith(f"{agent_id}/"):
                    marked.add(process.pid)
            except (psutil.Error, OSError):
                continue
        ours = {sessions[pid] for pid in marked}
        return [process for pid, process in everyone.items() if pid in marked or sessions.get(pid) in ours]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for process in self.engines():
            try:
                process.kill()
            except psutil.Error:
                continue
