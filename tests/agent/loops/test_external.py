"""Engines that somebody else runs: taken up where the policy allows it, watched, let go; never started, never stopped."""

import json
from urllib.parse import urlsplit

import pytest

from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.placement import Wanted
from nebula_core.records.replica import Phase
from nebula_core.security.files import write_secret
from tests.support.agent import eventually
from tests.support.engine_process import SimulatedEngine
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def engine(tmp_path):
    """Started by hand, under the name of its weights."""
    keys = tmp_path / "keys"
    keys.write_text("their-own-key\n")
    arguments = ("--preset", "instant", "--served-model-name", "Qwen/Qwen2.5-7B", "--api-key-file", str(keys))
    with SimulatedEngine(folder(tmp_path, "engine"), *arguments) as made:
        yield made


def folder(parent, name):
    made = parent / name
    made.mkdir()
    return made


def port_of(engine):
    return urlsplit(engine.url).port


def policy(parent, engine, **more):
    key = parent / "their.key"
    write_secret(key, b"their-own-key\n")
    address = f"127.0.0.1:{port_of(engine)}"
    lines = {"external": [address], **more}
    file = parent / "policy.toml"
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    file.write_text(f'{text}[external_keys]\n"{address}" = "{key}"\n')
    return str(file)


def spec(engine, **args):
    return {"source": f"http://127.0.0.1:{port_of(engine)}", "engine": "external", "args": args}


async def test_it_is_taken_up_under_its_own_name_and_let_go_alive(cluster, tmp_path, engine):
    cluster.agent(policy_file=policy(tmp_path, engine)).start()
    address = f"http://127.0.0.1:{port_of(engine)}"
    placement = await cluster.place(cluster.placement(spec=spec(engine), address=address))
    status = await cluster.until(Phase.READY)
    assert (status.runtime, status.engine, status.pid) == ("external", "external", None)
    assert (status.endpoint.host, status.endpoint.port) == ("127.0.0.1", port_of(engine))
    assert status.endpoint.served_model == "Qwen/Qwen2.5-7B"
    assert cluster.key_of(status) == "their-own-key"

    async def sampled():
        found = await cluster.status()
        return found if found.sample is not None and found.sample.requests_running is not None else None

    assert (await eventually(sampled, "its figures come")).metrics_schema.missing == ()
    await cluster.want(placement, Wanted.STOP)
    await cluster.until(Phase.STOPPED)
    assert engine.alive


async def test_without_the_policys_word_nobody_reaches_out(cluster, tmp_path, engine):
    cluster.agent().start()
    await cluster.place(cluster.placement(spec=spec(engine), address=f"http://127.0.0.1:{port_of(engine)}"))

    async def refused():
        status = await cluster.status()
        return status and status.phase is Phase.FAILED and status.phase_reason

    assert "allows no external engine" in await eventually(refused, "it is refused")


async def test_one_that_is_gone_leaves_routing_and_comes_back(cluster, tmp_path):
    # Not one the kernel gives out: in between it would give it to somebody else.
    port = free_port()
    words = ("--preset", "instant", "--served-model-name", "chat", "--port", str(port))
    with SimulatedEngine(folder(tmp_path, "a"), *words) as engine:
        cluster.agent(policy_file=policy(tmp_path, engine), health={"unhealthy_seconds": 1.0}).start()
        await cluster.place(cluster.placement(spec=spec(engine), address=f"http://127.0.0.1:{port}"))
        assert (await cluster.until(Phase.READY)).endpoint.served_model is None

    async def away():
        status = await cluster.status()
        return status and status.phase is not Phase.READY

    await eventually(away, "it leaves routing")
    with SimulatedEngine(folder(tmp_path, "b"), *words):
        await cluster.until(Phase.READY)


def test_a_list_is_one_address_per_replica():
    made = DeploymentSpec(source=["http://10.0.0.1:8000", "http://10.0.0.2:8000"], engine="external", replicas=2)
    assert made.addresses == ("http://10.0.0.1:8000", "http://10.0.0.2:8000")
    for source, replicas, said in (
        ("http://10.0.0.1:8000", 2, "name one per replica"),
        ("https://10.0.0.1:8000", 1, "plain HTTP"),
        ("http://10.0.0.1:8000/v1", 1, "without a path"),
        ("http://10.0.0.1:99999", 1, "no such port"),
        ("file:///etc/passwd", 1, "http://host:port"),
        (["http://a:1", "http://a:1"], 2, "twice"),
    ):
        with pytest.raises(ValueError, match=said):
            DeploymentSpec(source=source, engine="external", replicas=replicas)
