"""The agent with a real vLLM on the CPU: started from a folder, sampled, killed, started again, stopped without a trace."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from tests.agent.loops.test_life import ask
from tests.support.agent import eventually
from tests.support.engine_process import VLLM_MODEL, VLLM_VENV, missing_vllm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing_vllm() is not None, reason=str(missing_vllm())),
]

#: Canaries often; long enough to answer for an engine that shares two cores with everything else.
HEALTH = {"canary_idle_seconds": 3.0, "canary_seconds": 10.0}
SPEC = {
    "source": str(VLLM_MODEL),
    "engine": "vllm",
    "gpus": 0,
    "args": {"max-model-len": 2048, "max-num-seqs": 16},
}


def shared_memory():
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("psm_", "sem.mp-"))}


def generated(status):
    """As the engine itself counts, canaries and all."""
    page = httpx.get(f"http://{status.endpoint.host}:{status.endpoint.port}/metrics", timeout=10, trust_env=False).text
    lines = [line for line in page.splitlines() if line.startswith("vllm:generation_tokens_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_the_life_of_a_real_engine(cluster):
    before = shared_memory()
    agent = cluster.agent(
        engines={"vllm": {"program": str(VLLM_VENV / "bin" / "vllm")}}, term_seconds=10.0, health=HEALTH
    ).start()
    placement = await cluster.place(cluster.placement(spec=SPEC))
    loading = await cluster.until(Phase.LOADING)
    assert loading.engine_version == "0.32.0"
    ready = await cluster.until(Phase.READY, seconds=300)
    assert ready.endpoint is not None
    key = cluster.key_of(ready)
    assert ask(ready, None).status_code == 401
    answer = ask(ready, key, max_tokens=20, ignore_eos=True)
    assert answer.json()["usage"]["completion_tokens"] == 20

    async def sampled():
        status = await cluster.status()
        return status.sample if (status.sample and (status.sample.generation_tokens_total or 0) >= 21) else None

    sample = await eventually(sampled, "the tokens are counted", 30)
    assert sample.missing == ()
    assert sample.requests_running == 0
    assert sample.kv_cache_tokens > 0
    schema = (await cluster.status()).metrics_schema
    assert schema.found == schema.expected > 8
    assert (schema.missing, schema.renamed) == ((), ())

    async def canaries():
        status = await cluster.status()
        raw = await asyncio.to_thread(generated, status)
        return status if status.health.canary == "passed" and raw >= 23 else None

    status = await eventually(canaries, "canary tokens", 60)
    # One token proved that it is ready, twenty were the user's; canaries are in nobody's figures.
    assert status.sample.generation_tokens_total == 21
    family = agent.engines()
    assert len(family) >= 3

    agent.kill()
    agent.start()
    report = await cluster.returned(agent)
    assert [(status.pid, status.phase) for status in report.replicas] == [(ready.pid, Phase.READY)]

    # vLLM's workers outlive a killed parent for ever (engines, 2.8): none may be left when the next start begins.
    os.kill(ready.pid, signal.SIGKILL)

    async def anew():
        status = await cluster.status()
        return status is not None and status.phase is Phase.LOADING and status.pid != ready.pid

    await eventually(anew, "it is started anew", 60)
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]

    await cluster.until(Phase.READY, seconds=300)
    # EngineCore stands still while nobody asks for anything: /health goes on to say 200.
    core = next(process for process in agent.engines() if "EngineCor" in process.name())
    os.kill(core.pid, signal.SIGSTOP)

    async def kept():
        status = await cluster.status()
        return None if status is None else status.evidence

    evidence = await asyncio.to_thread(Path(await eventually(kept, "it hangs, and why is kept", 120)).read_text)
    assert "canaries in a row" in evidence
    assert "EngineCor state T" in evidence
    assert "vllm:num_requests_running" in evidence
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED, seconds=40)
    assert agent.engines() == []
    assert shared_memory() <= before
