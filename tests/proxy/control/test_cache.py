"""Models on the nodes' disks through the Control API and the command line: listed, fetched and evicted as operations."""

import asyncio

import pytest

from nebula_core.records.access import Role
from nebula_core.records.command import CommandState
from nebula_core.records.event import ChangeKind
from nebula_core.records.report import CachedModel, ModelCacheFacts, ModelFetch
from nebula_core.security.commands import verify_command
from nebula_core.security.envelope import VerifyKeys
from tests.agent.models.conftest import source_of
from tests.proxy.control.test_images import obey
from tests.support.agent import eventually
from tests.support.cluster_model import make_node
from tests.support.command_line import Nebula
from tests.support.control import KEY, RunningControl

HERE = CachedModel(id=source_of("Qwen/x").id, source="Qwen/x", size_bytes=3 * 1024**3, files=4, revision="c" * 40)
USED = CachedModel(id=source_of("Qwen/y").id, source="Qwen/y", size_bytes=1024**3, in_use=True)


@pytest.fixture
async def stocked(control: RunningControl) -> RunningControl:
    """n1 keeps models, n2 does not."""
    await control.report()
    [report] = [report for report in control.model.node_reports() if report.node == "n1"]
    report = report.model_copy(
        update={
            "models": (HERE, USED),
            "fetches": (ModelFetch(source="Qwen/z", progress=0.4, message="Qwen/z: 40 %"),),
            "model_cache": ModelCacheFacts(
                used_bytes=4 * 1024**3, evictable_bytes=3 * 1024**3, room_bytes=20 * 1024**3
            ),
        }
    )
    await control.store.publish_report(report)
    await control.process.watcher.wait_for(lambda seen: seen.reports["n1"].report.models is not None, timeout=30)
    return control


async def test_models_are_listed_by_node(stocked: RunningControl) -> None:
    async with stocked.client(Role.VIEWER) as api:
        [row] = (await api.get("/cache")).json()["items"]
        refused = await api.post("/cache/prefetch", json={"source": "Qwen/z"})
    assert (row["node"], [one["in_use"] for one in row["models"]]) == ("n1", [False, True])
    assert row["fetches"][0]["progress"] == 0.4
    assert row["room"]["evictable_bytes"] == 3 * 1024**3
    assert refused.status_code == 403


async def test_a_prefetch_is_an_operation_with_an_audit(stocked: RunningControl) -> None:
    async with stocked.client(Role.ADMIN) as api:
        shown = (await api.post("/cache/prefetch", params={"dry_run": 1}, json={"source": "Qwen/z"})).json()
        assert shown["parts"][0]["message"] == "would be fetched; 20.0 GiB free, 3.0 GiB more by eviction"
        shown = (await api.post("/cache/prefetch", params={"dry_run": 1}, json={"source": "Qwen/x"})).json()
        assert shown["parts"][0]["message"] == "is there already"
        assert await stocked.store.read_inbox("n1") == []
        answer = await api.post("/cache/prefetch", json={"source": "Qwen/z"}, headers={"idempotency-key": "k"})
        assert answer.status_code == 202
        again = await api.post("/cache/prefetch", json={"source": "Qwen/z"}, headers={"idempotency-key": "k"})
        assert again.json()["id"] == answer.json()["id"]
        [(_, signed)] = await eventually(lambda: stocked.store.read_inbox("n1"), "a command")
        now = stocked.desk.clock.wall()
        command = verify_command(VerifyKeys([KEY.public]), signed, node="n1", now=now)
        assert (command.kind, command.arguments) == ("cache.prefetch", {"source": "Qwen/z", "engine": "vllm"})
        await obey(stocked, "n1", CommandState.DONE, "Qwen/z is here")
        done = (await api.get(f"/operations/{answer.json()['id']}")).json()
        assert done["state"] == "done"
        audit = (await api.get("/audit")).json()["items"]
        assert [one["stage"] for one in audit if one["object"] == "model/Qwen/z"] == ["intent", "result"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("prefetch", {"source": "Qwen/z", "nodes": ["n9"]}, 404, "no node 'n9'"),
        ("prefetch", {"source": "Qwen/z", "nodes": ["n2"]}, 409, "keeps no models"),
        ("prefetch", {"source": "../../etc"}, 422, "source"),
        ("prefetch", {"source": "s3:no bucket"}, 422, "write s3:bucket/prefix"),
        ("prefetch", {"source": "Qwen/z", "engine": "sh"}, 422, "engine"),
        ("prefetch", {"source": "Qwen/z", "node": "n1"}, 422, "there is no"),
        ("evict", {"model": "Qwen/none"}, 409, "no node has"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    stocked: RunningControl, path: str, body: dict, status: int, said: str
) -> None:
    async with stocked.client(Role.ADMIN) as api:
        answer = await api.post(f"/cache/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]


async def test_the_command_line(stocked: RunningControl, nebula: Nebula) -> None:
    _, table, _ = await nebula("cache", "list")
    assert "Qwen/x" in table
    assert "in use" in table
    assert "40 %" in table
    _, shown, _ = await nebula("cache", "evict", "--dry-run")
    assert "1 models that nothing needs, 3.0 GiB" in shown
    _, shown, _ = await nebula("cache", "evict", "Qwen/y", "--dry-run")
    assert "Qwen/y is in use: refused" in shown
    code, _, err = await nebula("cache", "evict")
    assert (code, "add --yes" in err) == (2, True)
    fetching = asyncio.create_task(nebula("-o", "json", "cache", "prefetch", "Qwen/z", "--node", "n1"))
    await obey(stocked, "n1", CommandState.FAILED, "Qwen/z is gated")
    code, out, err = await fetching
    assert code == 1
    assert "Qwen/z is gated" in out
    assert "it failed on n1" in err


async def test_a_model_of_an_object_store_is_asked_for_as_any_other(stocked: RunningControl, nebula: Nebula) -> None:
    _, shown, _ = await nebula("cache", "prefetch", "s3://models/x", "--dry-run")
    assert "would be fetched; 20.0 GiB free" in shown
    fetching = asyncio.create_task(nebula("cache", "prefetch", "s3://models/x", "--node", "n1"))
    await obey(stocked, "n1", CommandState.DONE, "s3://models/x is here (3.0 GiB)")
    code, out, err = await fetching
    assert code == 0, err
    assert "s3://models/x is here" in out


async def test_a_plan_says_what_would_come_to_which_disk(stocked: RunningControl, nebula: Nebula, tmp_path) -> None:
    for name in ("n3", "n4"):
        node = make_node(name, 2, engines=("vllm",))
        stocked.model.add_node(node)
        await stocked.seen(await stocked.store.put(ChangeKind.NODE, name, node))
    await stocked.report()
    keeping = {"n1": (HERE, USED), "n3": (), "n4": None}
    for report in stocked.model.node_reports():
        if report.node in keeping:
            await stocked.store.publish_report(report.model_copy(update={"models": keeping[report.node]}))
    await stocked.process.watcher.wait_for(
        lambda seen: (
            keeping.keys() <= seen.reports.keys()
            and [seen.reports[name].report.models for name in keeping] == [*keeping.values()]
        ),
        timeout=30,
    )
    file = tmp_path / "chat.toml"
    file.write_text('[deployments.chat]\nsource = "Qwen/x"\nengine = "vllm"\nreplicas = 2\n')
    code, _, err = await nebula("plan", "-f", str(file))
    assert code == 0, err
    lines = [line.strip() for line in err.splitlines()]
    assert "n3 fetches Qwen/x from the hub (3.0 GiB)" in lines
    assert "n4 fetches Qwen/x from the hub unless it has it (3.0 GiB)" in lines
    spec = {"source": "Qwen/x", "engine": "vllm", "replicas": 2}
    async with stocked.client(Role.OPERATOR) as api:
        shown = (await api.put("/deployments/chat", params={"dry_run": 1}, json=spec)).json()
        assert [(one["node"], one["size_bytes"], one["certain"]) for one in shown["fetches"]] == [
            ("n3", 3 * 1024**3, True),
            ("n4", 3 * 1024**3, False),
        ]
        simulated = {"source": "sim", "engine": "simulated"}
        assert (await api.put("/deployments/s", params={"dry_run": 1}, json=simulated)).json()["fetches"] == []
