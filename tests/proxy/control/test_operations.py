"""Long work: one call, a command on each node, and the sum of what they say."""

import httpx

from nebula_core.records.access import Role
from nebula_core.records.command import CommandGroup, CommandResult, CommandState
from nebula_core.security.commands import verify_command
from nebula_core.security.envelope import VerifyKeys
from nebula_proxy.control.commands import operation_view
from tests.support.control import KEY, running_control

GROUP = CommandGroup(
    id="0" * 16, kind="image.pull", commands={"c" * 8: "n2", "b" * 8: "n1"}, summary="pulls x", by="ops", at=100.0
)


def result(command, node, state, progress=None):
    return CommandResult(id=command, node=node, kind="image.pull", state=state, progress=progress, message="m")


def test_an_operation_is_the_sum_of_its_parts():
    fresh = operation_view(GROUP, {}, 101.0)
    assert (fresh.state, fresh.progress, [part.node for part in fresh.parts]) == ("running", None, ["n1", "n2"])
    half = operation_view(GROUP, {"b" * 8: result("b" * 8, "n1", CommandState.RUNNING, 0.5)}, 101.0)
    assert (half.state, half.progress) == ("running", 0.25)
    both = {
        "b" * 8: result("b" * 8, "n1", CommandState.DONE, 1.0),
        "c" * 8: result("c" * 8, "n2", CommandState.REFUSED),
    }
    assert operation_view(GROUP, both, 101.0).state == "failed"
    unheard = operation_view(GROUP, {}, 200.0)
    assert unheard.state == "failed"
    assert "did not take it up" in unheard.parts[0].message


async def test_it_is_sent_signed_and_found_again(store_server):
    async with running_control(store_server) as control:
        view = await control.desk.commander.send(
            "image.pull", {"n1": {"image": "a"}, "n2": {"image": "a"}}, by="ops", summary="pulls a"
        )
        for node in ("n1", "n2"):
            [(_, signed)] = await control.store.read_inbox(node)
            command = verify_command(VerifyKeys([KEY.public]), signed, node=node, now=control.desk.clock.wall())
            assert (command.arguments, command.by) == ({"image": "a"}, "ops")
            await control.store.put_result(result(command.id, node, CommandState.DONE, 1.0))
        async with control.client(Role.VIEWER) as client:
            answer = (await client.get(f"/operations/{view.id}")).json()
            assert (answer["state"], answer["progress"], answer["summary"]) == ("done", 1.0, "pulls a")
            for name in ("nothere", "not-here", "x" * 65):
                missing: httpx.Response = await client.get(f"/operations/{name}")
                assert missing.status_code == 404
