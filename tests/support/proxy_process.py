"""A real data worker process on a real store, with endpoints written as an agent would."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nebula_core.records.access import Role
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.event import ChangeKind
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import NodeReport
from nebula_core.records.sample import EngineSample
from nebula_core.security.credentials import mint_key
from nebula_core.store.store import Store
from tests.support.data_plane import MODEL

NODE = "node-a"


def report(ports: Sequence[int], sequence: int, *, model: str = MODEL, phase: Phase = Phase.READY) -> NodeReport:
    return NodeReport(
        node=NODE,
        boot_id="boot",
        sequence=sequence,
        agent_pid=1,
        version="0",
        at=time.time(),
        replicas=tuple(
            ReplicaStatus(
                id=f"{model}-r{number}",
                deployment=model,
                model=model,
                node=NODE,
                engine="simulated",
                runtime="process",
                phase=phase,
                endpoint=EndpointAddress(host="127.0.0.1", port=port),
                engine_epoch="e1",
                sample=EngineSample(requests_running=0, requests_waiting=0, kv_cache_usage=0.0),
            )
            for number, port in enumerate(ports)
        ),
    )


async def write_cluster(store: Store, ports: Sequence[int], *, model: str = MODEL) -> str:
    """A deployment, its replicas, and a client's key, which is returned."""
    await store.ensure_meta()
    token, record = mint_key("client", Role.CLIENT, now=time.time(), created_by="test")
    await store.put(ChangeKind.KEY, record.id, record)
    spec = DeploymentSpec(source="sim", engine="simulated", replicas=len(ports), gpus=0)
    await store.put(ChangeKind.DEPLOYMENT, model, Deployment(name=model, generation=1, spec=spec))
    await store.publish_report(report(ports, 1, model=model), ttl=3600)
    return token


@dataclass
class ProxyProcess:
    process: asyncio.subprocess.Process
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged; a line that is being written just now is left for the next look."""
        found = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def said(self, action: str) -> int:
        """How often it logged this."""
        return sum(line.get("action") == action for line in self.lines())

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def proxy_process(
    store_url: str, directory: Path, port: int, *arguments: str, **settings: object
) -> AsyncIterator[ProxyProcess]:
    """`nebula-proxy run --role data` (or what `arguments` say)."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NEBULA_")}
    # A worker whose loop comes late turns requests away, and on a machine full of tests all loops do.
    env["NEBULA_PROXY_GUARDS__LOOP_LAG_SECONDS"] = "60"
    env |= {f"NEBULA_PROXY_{name.upper()}": str(value) for name, value in settings.items()}
    env |= {"NEBULA_PROXY_STORE__URL": store_url, "NEBULA_PROXY_PORT": str(port)}
    log = directory / "proxy.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nebula_proxy",
            "run",
            *(arguments or ("--role", "data")),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield ProxyProcess(process, port, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
