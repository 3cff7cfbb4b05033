"""The signing key is changed under running replicas: none is restarted, and what was forged is not signed for anybody.

A real control process (store, planner, rotation by the command line) and two real agents with engines.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import SignedPlacement
from nebula_core.records.replica import Phase
from nebula_core.runtime.clock import SystemClock
from nebula_core.security.envelope import SigningKey, sign_placement
from nebula_core.store.store import Store
from nebula_core.store.watcher import Watcher
from nebula_proxy.control.planner import PlannerLoop, PlannerSettings
from nebula_proxy.control.signing import SigningKeys
from nebula_proxy.settings import ProxySettings
from tests.support.agent import Cluster, eventually

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]

SPEC = DeploymentSpec(source="sim", engine="simulated", gpus=0, replicas=2, args={"preset": "instant"})


def nebula_proxy(data: Path, step: str, store_url: str) -> str:
    command = [sys.executable, "-m", "nebula_proxy", "init", "--data", str(data), "--store", store_url]
    done = subprocess.run([*command, *step.split()], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


class Control:
    """The planner of a control process with the keys that lie in the folder now."""

    def __init__(self, store: Store, data: Path) -> None:
        keys = SigningKeys.load(ProxySettings(data_dir=data))
        self.watcher = Watcher(store)
        self.planner = PlannerLoop(
            store,
            self.watcher,
            keys.current,
            SystemClock(),
            PlannerSettings(pass_seconds=0.1, listen_seconds=0),
            trusted=keys.trusted,
        )

    async def __aenter__(self):
        await self.watcher.start()
        await self.watcher.synced(60)
        self._task = asyncio.create_task(self.planner.run())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.watcher.stop()


async def signers(store: Store) -> dict[str, str]:
    return {
        name: SignedPlacement.from_json(raw).key_id for name, raw in (await store.get_all(ChangeKind.PLACEMENT)).items()
    }


async def test_no_engine_notices_and_nothing_forged_is_signed(tmp_path: Path, store: Store) -> None:
    url = store.settings.url
    nebula_proxy(tmp_path, "", url)
    keys = tmp_path / "keys"
    old = SigningKey.load(keys / "signing.key").key_id
    cluster = Cluster(tmp_path, store)
    cluster.verify_keys = keys / "verify.keys"
    agents = [cluster.agent(node).start() for node in ("n1", "n2")]
    try:
        await store.put(ChangeKind.DEPLOYMENT, "chat", Deployment(name="chat", generation=1, spec=SPEC))

        async def running() -> dict[str, tuple[int | None, int]]:
            found = {}
            for node in ("n1", "n2"):
                report = await cluster.report(node)
                for status in () if report is None else report.replicas:
                    if status.phase is Phase.READY:
                        found[status.id] = (status.pid, status.restarts)
            return found

        async def both():
            found = await running()
            return found if len(found) == 2 else None

        async with Control(store, tmp_path):
            before = await eventually(both, "two replicas run", 60)

        # Somebody who writes to the store: a placement of his own, and one that was ours and is not any more.
        forged = cluster.placement("evil-r1", "n1", deployment="chat", epoch=1)
        await store._commands.ask(
            "HSET", "nebula:v1:placements", "evil-r1", sign_placement(cluster.signing, forged).to_json()
        )

        nebula_proxy(tmp_path, "--rotate prepare", url)
        with pytest.raises(RuntimeError, match="signed by"):
            nebula_proxy(tmp_path, "--rotate finish", url)
        for agent in agents:
            agent.stop()
            agent.start()
        nebula_proxy(tmp_path, "--rotate switch", url)
        new = SigningKey.load(keys / "signing.key").key_id
        assert new != old
        async with Control(store, tmp_path) as control:

            async def anew():
                found = await signers(store)
                return {found.get("chat-r1"), found.get("chat-r2")} == {new}

            await eventually(anew, "signed anew", 60)
            assert (await signers(store))["evil-r1"] == cluster.signing.key_id

            async def told():
                events = [event.object for event in await store.read_events() if event.kind in {"resigned", "forged"}]
                return {"cluster/signing-key", "replica/evil-r1"} <= set(events)

            await eventually(told, "it is told", 60)
            calls = [(entry.call, entry.stage) for entry in await store.read_audit()]
            assert [stage for call, stage in calls if call == "sign placements anew"] == ["intent", "result"]
            # Whatever the planner makes of it, it signs nothing of it.
            await asyncio.sleep(0)
            for _ in range(5):
                await control.planner.step()
            assert (await signers(store))["evil-r1"] == cluster.signing.key_id
            with pytest.raises(RuntimeError, match="evil-r1"):
                nebula_proxy(tmp_path, "--rotate finish", url)
            await store._commands.ask("HDEL", "nebula:v1:placements", "evil-r1")
            nebula_proxy(tmp_path, "--rotate finish", url)
            assert len((keys / "verify.keys").read_text().split()) == 1
            for agent in agents:
                agent.stop()
                agent.start()
            assert await eventually(both, "both are adopted", 60) == before

            async def obeyed():
                statuses = [await cluster.report(node) for node in ("n1", "n2")]
                return all(
                    report is not None and not [p for p in report.problems if p.code == "placement_refused"]
                    for report in statuses
                )

            await eventually(obeyed, "nothing is refused")
            # And they obey what only the new key signs.
            one = Deployment(name="chat", generation=2, spec=SPEC.model_copy(update={"replicas": 1}))
            await store.put(ChangeKind.DEPLOYMENT, "chat", one)

            async def scaled():
                found = await running()
                return found if len(found) == 1 else None

            left = await eventually(scaled, "one is left", 60)
            assert left.items() <= before.items()
    finally:
        cluster.close()
