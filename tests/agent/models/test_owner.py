"""A hub id in a deployment: pulled with progress, started from this node's disk, its failures told by name; real processes."""

import asyncio
import hashlib
import json
import os
import signal
import time

import pytest

from nebula_core.records.command import Command, CommandState
from nebula_core.records.replica import Phase
from nebula_core.security.commands import sign_command
from tests.agent.models.conftest import source_of
from tests.support.agent import eventually
from tests.support.hub import tensors
from tests.support.object_store import KEY_ID, SECRET
from tests.support.stand_in import vllm_stand_in

pytestmark = pytest.mark.timeout(300)
SMALL = "team/small"
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture
def vllm(tmp_path):
    """A program in the place of vLLM: notes what it was given, then is the simulated engine."""
    seen = tmp_path / "seen.json"
    return vllm_stand_in(tmp_path, seen=seen), seen


def agent_of(cluster, hub, vllm, tmp_path, **changes):
    env = hub.env | {"HF_TOKEN_PATH": str(tmp_path / "none"), "HF_TOKEN": ""}
    return cluster.agent(
        env=env,
        engines={"vllm": {"program": str(vllm[0])}},
        model_cache={"high_watermark": 1.0, "low_watermark": 1.0},
        **changes,
    )


def ordered(cluster, source):
    return cluster.placement(spec={"engine": "vllm", "source": source, "args": {}})


async def test_a_hub_id_is_pulled_with_progress_and_started_from_the_disk(cluster, hub, vllm, tmp_path):
    hub.hold_after = 150_000
    agent = agent_of(cluster, hub, vllm, tmp_path).start()
    await cluster.place(ordered(cluster, SMALL))
    pulling = await cluster.until(Phase.PULLING)
    assert pulling.endpoint is None
    await eventually(lambda: asyncio.to_thread(hub.held.is_set), "bytes on their way")

    async def told():
        status = await cluster.status()
        return status is not None and "%" in (status.phase_reason or "") and status

    assert SMALL in (await eventually(told, "its progress")).phase_reason
    part = agent.data / "models" / "partial" / source_of(SMALL).id / f"{WEIGHTS}.part"
    await eventually(lambda: part.exists() and part.stat().st_size > 0, "bytes on the disk")
    report = await cluster.report()
    assert report.fetches[0].source == SMALL
    # The agent is killed in the middle of it, and its successor goes on.
    agent.kill()
    hub.hold_after = None
    hub.release.set()
    agent.start()
    await cluster.until(Phase.READY, seconds=60)
    seen = json.loads(vllm[1].read_text())
    assert seen["source"] == str(agent.data / "models" / "models" / source_of(SMALL).id)
    assert seen["offline"] == "1"
    assert "config.json" in seen["files"]
    assert "modeling.py" not in seen["files"]
    first = [said for name, said in hub.asked if name == WEIGHTS]
    assert first[0] is None
    assert first[1] is not None

    async def reported():
        report = await cluster.report()
        said = [] if report is None else [(each.source, each.complete, each.in_use) for each in report.models]
        return said == [(SMALL, True, True)]

    await eventually(reported, "the model in the report")


async def test_what_the_hub_says_is_what_the_replica_says(cluster, hub, vllm, tmp_path):
    agent_of(cluster, hub, vllm, tmp_path).start()
    await cluster.place(ordered(cluster, "team/none"))
    failed = await cluster.until(Phase.FAILED)
    assert "its model could not be fetched: team/none" in failed.phase_reason
    assert "is not at" in failed.phase_reason


async def test_a_damaged_model_fails_by_name_and_comes_again(cluster, hub, vllm, tmp_path):
    agent = agent_of(cluster, hub, vllm, tmp_path).start()
    await cluster.place(ordered(cluster, SMALL))
    status = await cluster.until(Phase.READY, seconds=60)
    victim = agent.data / "models" / "models" / source_of(SMALL).id / "model-00002-of-00002.safetensors"
    content = victim.read_bytes()
    victim.write_bytes(content[:-9])
    os.killpg(os.getpgid(status.pid), signal.SIGKILL)

    # In the log: the replica itself tells of it for a second or two only, until it is started again.
    def named():
        return [line for line in agent.log.splitlines() if "engine_not_started" in line and "model team/small" in line]

    assert victim.name in (await eventually(named, "the reason", 60))[0]
    await cluster.until(Phase.READY, seconds=60)
    assert victim.read_bytes() == content


async def test_a_folder_with_a_missing_shard_fails_by_name(cluster, hub, vllm, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(tensors(100))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    agent_of(cluster, hub, vllm, tmp_path).start()
    await cluster.place(ordered(cluster, f"nfs:{folder}"))
    failed = await cluster.until(Phase.FAILED)
    assert "b.safetensors is missing" in failed.phase_reason


async def order(cluster, name, kind, **arguments):
    """The command's result, once there is one."""
    now = time.time()
    command = Command(
        id=hashlib.sha256(name.encode()).hexdigest()[:16],
        node="n1",
        kind=kind,
        arguments=arguments,
        issued_at=now,
        expires_at=now + 50,
        by="test",
    )
    await cluster.store.send_command("n1", sign_command(cluster.signing, command))

    async def over():
        found = (await cluster.store.get_results([command.id])).get(command.id)
        return found if found is not None and found.state.over else None

    return await eventually(over, f"the end of {name}", 60)


async def test_prefetch_and_evict_by_command(cluster, hub, vllm, tmp_path):
    agent_of(cluster, hub, vllm, tmp_path).start()
    await eventually(cluster.report, "the agent")
    done = await order(cluster, "one", "cache.prefetch", source=SMALL)
    assert done.state is CommandState.DONE, done.message
    assert done.facts["id"] == source_of(SMALL).id
    refused = await order(cluster, "two", "cache.prefetch", source="s3:bucket/model")
    assert (refused.state, "names no source" in refused.message) == (CommandState.FAILED, True)
    await cluster.place(ordered(cluster, SMALL))
    await cluster.until(Phase.READY, seconds=60)
    kept = await order(cluster, "three", "cache.evict", model=SMALL)
    assert (kept.state, "in use" in kept.message) == (CommandState.FAILED, True)
    assert (await order(cluster, "four", "cache.evict")).facts["evicted"] == 0
    assert (await order(cluster, "five", "cache.evict", model="../../etc")).state is CommandState.FAILED


async def test_a_model_of_an_object_store_is_prefetched_and_started_from(cluster, objects, vllm, tmp_path):
    objects.put("models", {"team/small/config.json": b"{}", "team/small/model.safetensors": tensors(200_000)})
    credentials, policy = tmp_path / "s3.credentials", tmp_path / "policy.toml"
    credentials.write_text(f"[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")
    credentials.chmod(0o600)
    policy.write_text('sources = ["s3:models/*"]\n')
    s3 = {"endpoint": objects.url, "credentials_file": str(credentials)}
    agent = cluster.agent(
        env={"AWS_EC2_METADATA_DISABLED": "true"},
        engines={"vllm": {"program": str(vllm[0])}},
        model_cache={"high_watermark": 1.0, "low_watermark": 1.0, "s3": s3},
        policy_file=str(policy),
    ).start()
    await eventually(cluster.report, "the agent")
    done = await order(cluster, "one", "cache.prefetch", source="s3://models/team/small")
    assert done.state is CommandState.DONE, done.message
    assert done.facts["id"] == source_of("s3://models/team/small").id
    failed = await order(cluster, "two", "cache.prefetch", source="s3:models/none")
    assert "has nothing below it" in failed.message
    asked = len(objects.asked)
    await cluster.place(ordered(cluster, "s3://models/team/small"))
    await cluster.until(Phase.READY, seconds=60)
    assert json.loads(vllm[1].read_text())["files"][1:] == ["config.json", "model.safetensors"]
    assert len(objects.asked) == asked
    report = await cluster.report()
    for said in (agent.log_file.read_text(), report.model_dump_json(), failed.message):
        assert SECRET not in said
        assert KEY_ID not in said
