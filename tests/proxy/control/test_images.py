"""Images through the Control API and the command line: listed per node, pulled and pruned as operations."""

import asyncio
import json

import pytest

from nebula_core.records.access import Role
from nebula_core.records.command import CommandResult, CommandState
from nebula_core.records.report import ImagePull, NodeImage
from nebula_core.security.commands import verify_command
from nebula_core.security.envelope import VerifyKeys
from tests.support.agent import eventually
from tests.support.command_line import Nebula
from tests.support.control import KEY, RunningControl

IMAGE = NodeImage(
    id="sha256:" + "1" * 64,
    tags=("vllm/vllm-openai:v0.32.0",),
    digests=("vllm/vllm-openai@sha256:" + "2" * 64,),
    size_bytes=10**10,
)
USED = NodeImage(id="sha256:" + "3" * 64, tags=("a:1",), size_bytes=5, in_use=True)


@pytest.fixture
async def stocked(control: RunningControl) -> RunningControl:
    """n1 runs containers, n2 does not."""
    await control.report()
    [report] = [report for report in control.model.node_reports() if report.node == "n1"]
    pulls = (ImagePull(image="b:1", progress=0.4, message="b:1: 40 %"),)
    await control.store.publish_report(report.model_copy(update={"images": (IMAGE, USED), "pulls": pulls}))
    await control.process.watcher.wait_for(lambda seen: seen.reports["n1"].report.images is not None, timeout=30)
    return control


async def obey(control: RunningControl, node: str, state: CommandState, message: str) -> None:
    """What an agent would do with the one command of its inbox."""
    entries = await eventually(lambda: control.store.read_inbox(node), "a command")
    _, signed = entries[-1]
    command = verify_command(VerifyKeys([KEY.public]), signed, node=node, now=control.desk.clock.wall())
    await control.store.put_result(
        CommandResult(id=command.id, node=node, kind=command.kind, state=state, message=message, progress=1.0)
    )


async def test_images_are_listed_by_node(stocked: RunningControl) -> None:
    async with stocked.client(Role.VIEWER) as api:
        [row] = (await api.get("/images")).json()["items"]
    assert row["node"] == "n1"
    assert [image["in_use"] for image in row["images"]] == [False, True]
    assert row["pulls"][0]["progress"] == 0.4


async def test_a_pull_is_an_operation_with_an_audit(stocked: RunningControl) -> None:
    async with stocked.client(Role.ADMIN) as api:
        shown = (await api.post("/images/pull", params={"dry_run": 1}, json={"image": "c:1"})).json()
        assert (shown["dry_run"], shown["id"], [part["node"] for part in shown["parts"]]) == (True, None, ["n1"])
        assert await stocked.store.read_inbox("n1") == []
        headers = {"idempotency-key": "k1"}
        answer = await api.post("/images/pull", json={"image": "c:1"}, headers=headers)
        assert answer.status_code == 202
        again = await api.post("/images/pull", json={"image": "c:1"}, headers=headers)
        assert again.json()["id"] == answer.json()["id"]
        assert len(await stocked.store.read_inbox("n1")) == 1
        await obey(stocked, "n1", CommandState.DONE, "c:1 is here")
        done = (await api.get(f"/operations/{answer.json()['id']}")).json()
        assert (done["state"], done["parts"][0]["message"]) == ("done", "c:1 is here")
        audit = (await api.get("/audit")).json()["items"]
        assert [one["stage"] for one in audit if one["object"] == "image/c:1"] == ["intent", "result"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"image": "c:1", "nodes": ["n9"]}, 404, "no node 'n9'"),
        ({"image": "c:1", "nodes": ["n2"]}, 409, "runs no containers"),
        ({"image": "../x y"}, 422, "image"),
        ({"image": "c:1", "node": "n1"}, 422, "there is no node"),
        ({}, 422, "image"),
    ],
)
async def test_what_cannot_be_pulled_is_refused(stocked: RunningControl, body: dict, status: int, said: str) -> None:
    async with stocked.client(Role.ADMIN) as api:
        answer = await api.post("/images/pull", json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]


async def test_the_command_line(stocked: RunningControl, nebula: Nebula) -> None:
    _, table, _ = await nebula("images", "list")
    assert "vllm/vllm-openai:v0.32.0" in table
    assert "9.3" in table
    assert "in use" in table
    assert "40 %" in table
    _, shown, _ = await nebula("images", "prune", "--dry-run")
    assert "1 images that nothing needs, 9.3 GiB" in shown
    code, _, err = await nebula("images", "prune")
    assert (code, "add --yes" in err) == (2, True)
    pulling = asyncio.create_task(nebula("-o", "json", "images", "pull", "c:1", "--node", "n1"))
    await obey(stocked, "n1", CommandState.FAILED, "the registry has no such image")
    code, out, err = await pulling
    assert code == 1
    assert json.loads(out.splitlines()[-1])["parts"][0]["message"] == "the registry has no such image"
    assert "it failed on n1" in err
