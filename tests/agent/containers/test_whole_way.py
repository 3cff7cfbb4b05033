"""The whole way: desired through the Control API, placed by the planner, pulled, started, chatted with through the proxy, gone."""

import os
import signal

import httpx
import pytest

from nebula_core.records.access import Role
from nebula_core.security.sealing import SealingKeyPair
from tests.agent.containers.test_life import containers, policy, settings, spec
from tests.support.agent import AgentProcess, Cluster, eventually
from tests.support.control import KEY, running_control
from tests.support.docker import SIMULATOR
from tests.support.ports import free_port
from tests.support.proxy_process import proxy_process

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.flow]


async def test_from_desired_to_a_chat_and_back_to_nothing(store, store_server, docker, registry, tmp_path):
    cluster = Cluster(tmp_path, store)
    cluster.verify_keys.write_text(f"{KEY.public_base64}\n")
    sealing = SealingKeyPair.generate()
    sealing.save(tmp_path / "sealing.key")
    cluster.sealing_public.write_text(f"{sealing.public_base64}\n")
    name = "team/whole:1"
    digest = registry.push(docker, SIMULATOR, name)
    image = f"{registry.host}/{name}"
    agent = AgentProcess(
        tmp_path,
        cluster.settings(docker=settings(docker), policy_file=policy(tmp_path, f'images = ["{registry.host}"]')),
    )
    try:
        async with running_control(store_server, nodes=0) as control, control.client(Role.ADMIN) as api:
            agent.start()

            async def node():
                return (await api.get("/nodes/n1")).status_code == 200

            await eventually(node, "the node is known")
            body = {"source": "sim", "engine": "simulated", "gpus": 0, "replicas": 1} | spec(image)
            answer = await api.put("/deployments/chat", json=body)
            assert answer.status_code == 200, answer.text

            async def ready(former=None):
                rows = (await api.get("/replicas")).json()["items"]
                return next((row for row in rows if row["phase"] == "ready" and row["container_id"] != former), None)

            row = await eventually(ready, "the replica is ready", 60)
            assert (row["runtime"], row["node"]) == ("docker", "n1")
            [listed] = (await api.get("/images")).json()["items"]
            assert any(one.endswith(digest) for image in listed["images"] for one in image["digests"])
            port = free_port()
            async with (
                proxy_process(store_server.url, tmp_path, port, sealing_key_file=tmp_path / "sealing.key") as proxy,
                httpx.AsyncClient(
                    base_url=proxy.url, headers={"authorization": f"Bearer {control.tokens[Role.CLIENT]}"}
                ) as client,
            ):

                async def chat():
                    try:
                        said = await client.post(
                            "/v1/chat/completions",
                            json={"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
                        )
                    except httpx.TransportError:
                        return None
                    return said if said.status_code == 200 else None

                said = await eventually(chat, "a chat comes back")
                assert said.json()["usage"]["completion_tokens"] == 4
                assert said.headers["x-nebula-replica"] == "chat-r1"
                os.kill(row["pid"], signal.SIGKILL)
                again = await eventually(lambda: ready(row["container_id"]), "it is started again")
                assert again["restarts"] == 1
                await eventually(chat, "a chat comes back again")
            scaled = await api.post("/deployments/chat/scale", json={"replicas": 0})
            assert scaled.status_code == 200, scaled.text

            async def nothing():
                return (await api.get("/replicas")).json()["items"] == [] and containers(docker) == []

            await eventually(nothing, "nothing is left")
            for folder in ("containers", "keys"):
                await eventually(lambda at=agent.data / folder: list(at.iterdir()) == [], f"{folder} is empty")
    finally:
        agent.close()
