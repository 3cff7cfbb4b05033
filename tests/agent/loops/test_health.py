"""Health as progress, on real engines: an idle one is asked for a token, a hung one is found, told of, and started again."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from nebula_core.records.replica import Phase
from tests.agent.loops.test_life import ask
from tests.support.agent import eventually

pytestmark = pytest.mark.timeout(90)


async def figures_of(status):
    async with httpx.AsyncClient(trust_env=False) as client:
        page = await client.get(f"http://{status.endpoint.host}:{status.endpoint.port}/metrics")
    found = [line for line in page.text.splitlines() if line.startswith("vllm:request_success_total")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def evidence(status, agent):
    path = Path(status.evidence)
    assert path.parent == agent.data / "evidence"
    assert path.stat().st_mode & 0o077 == 0
    return path.read_text()


async def test_an_idle_engine_gives_canary_tokens_that_are_in_nobodys_figures(cluster):
    cluster.agent(health={"canary_idle_seconds": 0.3}).start()
    await cluster.place(cluster.placement())
    ready = await cluster.until(Phase.READY)
    assert ask(ready, cluster.key_of(ready)).status_code == 200

    async def asked_often():
        status = await cluster.status()
        return status.health.canary == "passed" and await figures_of(status) >= 4 and status

    before = await eventually(asked_often, "canaries")
    assert (before.health.alive, before.health.ready, before.health.answers) == (True, True, True)
    assert before.health.engine_epoch == before.engine_epoch
    assert before.phase is Phase.READY

    async def settled():
        """A report of after the request, whenever the scrapes and canaries fell."""
        sample = (await cluster.status()).sample
        # One token proved that it is ready, one request is the user's; and a second without any.
        figures = (sample.requests_finished_total, sample.generation_tokens_total)
        return figures == (2, 4) and sample.generation_tokens_per_second == 0 and sample

    sample = await eventually(settled, "the users' figures")
    assert await figures_of(before) > 3
    assert sample.requests_running == 0


async def test_an_idle_engine_that_hangs_is_found_by_its_canary(cluster):
    """EngineCore is stopped, the API goes on: /health says 200 and no counter is expected to move."""
    agent = cluster.agent(
        health={"canary_idle_seconds": 0.5, "canary_seconds": 1.5, "frozen_seconds": 60.0}, term_seconds=1.0
    ).start()
    await cluster.place(cluster.placement())
    ready = await cluster.until(Phase.READY)
    core = next(process for process in agent.engines() if process.pid != ready.pid)
    os.kill(core.pid, signal.SIGSTOP)
    failed = await cluster.failed()
    assert "gave no token to 2 canaries" in failed.first_failure_reason
    again = await cluster.until(Phase.READY)
    assert again.engine_epoch != ready.engine_epoch
    assert again.first_failure_reason == failed.first_failure_reason
    assert "state T" in evidence(again, agent)
    owed = [line for line in agent.log.splitlines() if "canary_failed" in line and ready.engine_epoch in line]
    assert len(owed) == 2


async def test_a_hang_under_load_leaves_evidence(cluster):
    agent = cluster.agent(health={"suspect_seconds": 1.0, "frozen_seconds": 4.0}, term_seconds=1.0).start()
    await cluster.place(cluster.placement(spec={"args": {"preset": "tiny", "fault": "freeze-at-token=2"}}))
    ready = await cluster.until(Phase.READY)
    hanging = asyncio.create_task(asyncio.to_thread(ask, ready, cluster.key_of(ready), max_tokens=50))
    doubted = await cluster.until(Phase.LOADING)
    assert doubted.phase_reason == "suspect: requests run and no counter moves"
    assert doubted.health.progress == "still"
    assert doubted.pid == ready.pid
    failed = await cluster.failed()
    assert "frozen" in failed.first_failure_reason
    assert failed.evidence in failed.first_failure_reason
    await asyncio.gather(hanging, return_exceptions=True)
    text = evidence(failed, agent)
    for part in ("counters over the last minute", "processes", "last log lines", "vllm:num_requests_running"):
        assert part in text
    assert f"pid {ready.pid}" in text
    assert "Starting simulated engine" in text
    assert cluster.key_of(ready) not in text
