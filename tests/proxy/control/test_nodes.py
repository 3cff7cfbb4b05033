"""Nodes through the Control API: cordoned, drained, forgotten."""

from nebula_core.records.access import Role
from nebula_core.records.event import ChangeKind
from nebula_core.records.snapshot import SUSPECT_AFTER_SECONDS
from tests.support.cluster_model import make_node
from tests.support.control import RunningControl


async def test_what_is_known_of_a_node(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    async with control.client(Role.VIEWER) as api:
        nodes = {one["id"]: one for one in (await api.get("/nodes")).json()["items"]}
        assert set(nodes) == {"n1", "n2"}
        one = (await api.get("/nodes/n1")).json()
        assert (one["state"], one["replicas"], one["agent_pid"]) == ("ready", ["chat-r1"], 1)
        assert 0 <= one["heartbeat_age_seconds"] <= SUSPECT_AFTER_SECONDS
        assert [gpu["replica"] for gpu in one["gpus"]] == ["chat-r1", None, None, None]
        missing = await api.get("/nodes/n3")
        assert missing.status_code == 404
        assert "n1" in missing.json()["error"]["hint"]


async def test_cordon_and_uncordon(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        shown = (await api.post("/nodes/n1/cordon", params={"dry_run": 1})).json()
        assert shown["summary"] == "cordons n1: nothing new is placed there"
        assert not (await api.get("/nodes/n1")).json()["cordoned"]
        await api.post("/nodes/n1/cordon")
        assert (await api.get("/nodes/n1")).json()["cordoned"]
        again = (await api.post("/nodes/n1/cordon")).json()
        assert again["summary"] == "nothing to do for n1"
        await api.put("/deployments/chat", json={"source": "sim", "engine": "simulated", "replicas": 3})
        await control.ready()
        assert {one.node for one in control.desk.look().replicas.values()} == {"n2"}
        await api.post("/nodes/n1/uncordon")
        assert not (await api.get("/nodes/n1")).json()["cordoned"]
        assert (await api.post("/nodes/n9/cordon")).status_code == 404


async def test_single_gpus(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        for gpu in ("0", "sim-n1-1"):
            assert (await api.post(f"/nodes/n1/gpus/{gpu}/cordon")).status_code == 200
        gpus = (await api.get("/nodes/n1")).json()["gpus"]
        assert [gpu["cordoned"] for gpu in gpus] == [True, True, False, False]
        await api.post("/nodes/n1/gpus/sim-n1-0/uncordon")
        gpus = (await api.get("/nodes/n1")).json()["gpus"]
        assert [gpu["cordoned"] for gpu in gpus] == [False, True, False, False]
        assert (await api.post("/nodes/n1/gpus/7/cordon")).status_code == 404


async def test_a_drain_moves_everything_and_uncordon_ends_it(control: RunningControl) -> None:
    await control.deploy("chat", 2)
    await control.ready()
    async with control.client(Role.OPERATOR) as api:
        order = {"grace_seconds": 30, "reason": "new fan"}
        shown = (await api.post("/nodes/n1/drain", json=order, params={"dry_run": 1})).json()
        assert "starts chat-r3 on n2" in shown["summary"]
        assert not shown["last_ready"]
        assert (await api.post("/nodes/n1/drain", json=order)).status_code == 200
        node = (await api.get("/nodes/n1")).json()
        assert node["draining"]
        assert (node["drain"]["grace_seconds"], node["drain"]["reason"]) == (30, "new fan")
        assert node["drain"]["by"] == "operator-key"
        await control.until(
            lambda look: not look.nodes["n1"].replicas and look.deployments["chat"].replicas_ready == 2, "all moved"
        )
        await api.post("/nodes/n1/uncordon")
        assert not (await api.get("/nodes/n1")).json()["draining"]
        bad = await api.post("/nodes/n1/drain", json={"grace": 3})
        assert (bad.status_code, bad.json()["error"]["param"]) == (422, "grace")


async def test_a_node_that_reports_is_not_forgotten(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        refused = await api.delete("/nodes/n1")
        assert refused.status_code == 409
        assert "stop its agent" in refused.json()["error"]["hint"]
        await control.seen(await control.store.put(ChangeKind.NODE, "old", make_node("old")))
        assert (await api.get("/nodes/old")).json()["state"] == "lost"
        assert (await api.delete("/nodes/old")).status_code == 200
        assert (await api.get("/nodes/old")).status_code == 404
