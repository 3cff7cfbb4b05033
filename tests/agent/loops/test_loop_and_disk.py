"""Nothing that an agent's event loop does waits for a disk, from its first report to its end (GOALS R5)."""

import os
import signal

import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.support.agent import eventually
from tests.support.disk_audit import asked
from tests.support.hub import Hub, serving, tensors
from tests.support.stand_in import vllm_stand_in

pytestmark = pytest.mark.timeout(120)


async def test_the_loop_asks_no_disk(cluster, store, tmp_path):
    audit = tmp_path / "audit"
    hub = Hub(files={"team/small": {"config.json": b"{}", "model.safetensors": tensors(3000, 1)}})
    with serving(hub):
        agent = cluster.agent(
            audit=audit,
            env=hub.env | {"HF_TOKEN": "", "HF_TOKEN_PATH": str(tmp_path / "none")},
            gpus="simulated:2",
            engines={"vllm": {"program": str(vllm_stand_in(tmp_path))}},
            model_cache={"high_watermark": 1.0, "low_watermark": 1.0},
        )
        await live(cluster, store, agent, tmp_path / "weights")
    assert not asked(audit)


async def live(cluster, store, agent, weights):
    """Started, looked at, killed, stopped, forgotten; refused, fetched; adopted."""
    agent.start()
    await eventually(cluster.report, "the agent reports")
    first = await cluster.place(cluster.placement())
    weights.mkdir()
    path = cluster.placement("path-r1", spec={"engine": "vllm", "args": {}, "source": str(weights)})
    await cluster.place(path)
    await cluster.place(cluster.placement("absent-r1", spec={"engine": "vllm", "args": {}, "source": f"{weights}-not"}))
    await cluster.place(cluster.placement("hub-r1", spec={"engine": "vllm", "args": {}, "source": "team/small"}))
    await store.watch_logs("chat-r1")
    ready = await cluster.until(Phase.READY)
    kept = await cluster.until(Phase.READY, "path-r1")
    await eventually(lambda: figures(cluster), "a sample with rates")
    assert "not on this node" in (await cluster.until(Phase.FAILED, "absent-r1")).phase_reason
    await cluster.until(Phase.READY, "hub-r1")
    # Its end by itself, and the start that follows.
    os.kill(ready.pid, signal.SIGKILL)
    again = await eventually(lambda: renewed(cluster, ready.pid), "it is started again")
    assert again.restarts == 1
    await cluster.want(first, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    await cluster.remove("chat-r1")
    await eventually(lambda: gone(cluster), "the replica is forgotten")
    assert agent.stop() == 0
    agent.start()
    await cluster.returned(agent)
    adopted = await cluster.until(Phase.READY, "path-r1")
    assert (adopted.pid, adopted.restarts) == (kept.pid, 0)
    await eventually(lambda: figures(cluster, "path-r1"), "a sample with rates")
    await cluster.want(path, Wanted.STOP)
    await cluster.until(Phase.STOPPED, "path-r1")
    assert agent.stop() == 0


async def figures(cluster, replica="chat-r1"):
    status = await cluster.status(replica)
    return status.sample if status.sample and status.sample.generation_tokens_per_second is not None else None


async def renewed(cluster, pid):
    status = await cluster.status()
    return status if status is not None and status.phase is Phase.READY and status.pid != pid else None


async def gone(cluster):
    return await cluster.status() is None
