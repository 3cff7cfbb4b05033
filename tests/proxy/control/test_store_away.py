"""Without its store the Control API goes on showing what it knows, and changes nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from nebula_core.records.access import Role
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import SignedPlacement
from nebula_core.records.store_memory import HeldOrders
from nebula_core.security.envelope import SigningKey, VerifyKeys, sign_placement, verify_placement
from tests.support.command_line import command_line
from tests.support.control import KEY, RunningControl, following, running_control
from tests.support.store import StoreServer


async def away(control: RunningControl) -> None:
    async with asyncio.timeout(30):
        while control.process.watcher.reachable:
            await asyncio.sleep(0.02)


async def test_reads_go_on_and_changes_are_refused_until_it_is_back(own_store: Callable[..., StoreServer]) -> None:
    server = own_store()
    async with running_control(server) as control:
        await control.deploy("chat", 1)
        await control.ready()
        async with control.client(Role.ADMIN) as api, following(api, "/watch", interval_ms=100) as watch:
            await watch.next()
            server.kill()
            await away(control)
            _, delta = await watch.until(lambda _, data: data.get("cluster", {}).get("store_reachable") is False)
            assert delta["cluster"]["store_reachable"] is False
            for path in ("/whoami", "/nodes", "/nodes/n1", "/deployments", "/replicas/chat-r1", "/cluster", "/leader"):
                answer = await api.get(path)
                assert answer.status_code == 200, path
                assert float(answer.headers["x-nebula-snapshot-age"]) >= 0
            shown = await api.post("/deployments/chat/scale", json={"replicas": 2}, params={"dry_run": 1})
            assert shown.status_code == 200
            for method, path, body in (
                ("POST", "/deployments/chat/scale", {"replicas": 2}),
                ("POST", "/nodes/n1/cordon", None),
                ("POST", "/keys", {"name": "x"}),
                ("DELETE", "/deployments/chat", None),
                ("GET", "/events", None),
                ("GET", "/replicas/chat-r1/logs", None),
            ):
                refused = await api.request(method, path, json=body)
                assert refused.status_code == 503, path
                error = refused.json()["error"]
                assert error["code"] == "store_unavailable"
                assert error["hint"]
            async with api.stream("GET", "/events", params={"follow": 1}) as stream:
                assert b"event: error" in await stream.aread()
            server.start()
            await control.process.watcher.synced(30)
            assert (await api.post("/deployments/chat/scale", json={"replicas": 2})).status_code == 200
            await control.ready("chat", 2)
            assert (await api.get(f"{control.url}/readyz")).json()["store_reachable"] is True


async def test_a_start_without_a_store_lets_nobody_in_but_says_why(own_store: Callable[..., StoreServer]) -> None:
    server = own_store()
    server.kill()
    async with running_control(server, synced=False) as control, control.client(None) as api:
        assert (await api.get(f"{control.url}/healthz")).status_code == 200
        assert (await api.get(f"{control.url}/readyz")).status_code == 503
        refused = await api.get("/whoami", headers={"authorization": "Bearer nbl_abcdef_" + "x" * 40})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        server.start()
        await control.process.watcher.synced(30)
        assert (await api.get(f"{control.url}/readyz")).status_code == 200
        assert (await api.get("/whoami")).status_code == 401


async def test_a_store_that_lost_its_memory_is_not_written_over(own_store: Callable[..., StoreServer]) -> None:
    server = own_store()
    async with running_control(server) as control:
        await control.deploy("chat", 1)
        await control.ready()
        server.kill()
        await away(control)
        server.lose_data()
        server.start()
        async with asyncio.timeout(30):
            while not control.process.watcher.emptied:
                await asyncio.sleep(0.02)
        async with control.client(Role.ADMIN) as api:
            view = (await api.get("/deployments/chat")).json()
            assert view["replicas_ready"] == 1
            refused = await api.post("/deployments/chat/scale", json={"replicas": 0})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_emptied")
            assert "empty" in (await api.get("/cluster")).json()["brake"]


async def test_an_emptied_store_is_written_anew_from_the_command_line(
    own_store: Callable[..., StoreServer], tmp_path: Path, monkeypatch, capsys
) -> None:
    server = own_store()
    async with running_control(server) as control:
        await control.deploy("chat", 2)
        await control.ready()
        nebula = command_line(control, tmp_path, monkeypatch, capsys, Role.ADMIN)
        code, _, err = await nebula("adopt", "--store", "--dry-run")
        assert (code, "not in doubt" in err) == (0, True)
        before = control.process.watcher.snapshot
        server.command("FLUSHALL")
        async with asyncio.timeout(30):
            while not control.process.watcher.emptied or control.process.planner.latest.brake is None:
                await control.report()
                await asyncio.sleep(0.02)
        code, out, err = await nebula("status")
        assert "nebula adopt --store" in out + err
        code, out, err = await nebula("adopt", "--store", "--dry-run")
        assert code == 0, err
        for words in (
            "would write 1 deployments, 2 placements",
            "what this process remembers",
            "placement chat-r2 on n2: run",
        ):
            assert words in err
        assert "key" in err
        assert "nothing to do then" in err
        assert control.process.watcher.emptied, "that was only a look"
        for role in (Role.VIEWER, Role.OPERATOR):
            assert (await nebula("adopt", "--store", "--yes", role=role))[0] == 4
        assert (await nebula("adopt", "--store", "chat-r1"))[0] == 2
        await control.report()
        code, out, err = await nebula("adopt", "--store", "--yes")
        assert code == 0, err
        assert "wrote 1 deployments, 2 placements" in err
        async with asyncio.timeout(30):
            while control.process.watcher.doubt is not None:
                await asyncio.sleep(0.02)
        after = control.process.watcher.snapshot
        assert after.deployments == before.deployments
        assert after.keys == before.keys
        assert after.nodes == before.nodes
        assert after.revision > before.revision
        for replica, placement in after.placements.items():
            known = before.placements[replica]
            assert placement.order > known.order
            assert placement.model_copy(update={"epoch": known.epoch, "revision": known.revision}) == known
        await control.ready()
        async with control.client(Role.ADMIN) as api:
            assert (await api.post("/deployments/chat/scale", json={"replicas": 3})).status_code == 200
        await control.ready("chat", 3)


async def test_an_adoption_signs_nothing_that_somebody_else_put_into_the_store(
    own_store: Callable[..., StoreServer],
) -> None:
    """Written after the loss, later than the true order, for a replica that runs; and shown as held, under a key of his."""
    server = own_store()
    async with running_control(server) as control, control.client(Role.ADMIN) as api:
        await control.deploy("chat", 2)
        await control.ready()
        watcher, forger = control.process.watcher, SigningKey.generate()
        true = watcher.snapshot.placements["chat-r1"]
        raw = await control.store.get(ChangeKind.PLACEMENT, "chat-r1")
        assert raw is not None
        server.command("FLUSHALL")
        async with asyncio.timeout(30):
            while not watcher.emptied:
                await asyncio.sleep(0.02)
        spec = true.spec.model_copy(update={"image": "evil:1"})
        forged = sign_placement(forger, true.model_copy(update={"spec": spec, "epoch": true.epoch + 1}))
        await control.seen(await control.store.apply_placements(true.epoch, [("chat-r1", forged)]))
        assert watcher.snapshot.placements["chat-r1"].spec.image == "evil:1"
        held = HeldOrders(node=true.node, placements=(SignedPlacement.from_json(raw), forged))
        await control.store.show_held(held)
        await control.report()
        shown = (await api.post("/adopt/store", params={"dry_run": 1})).json()
        notes = {note["object"]: note["message"] for note in shown["notes"]}
        assert "look who writes to the store" in notes["replica/chat-r1"]
        assert "signed by unknown key" in notes[f"node/{true.node}"]
        await control.report()
        refused = await api.post("/adopt/store", json={"shown": "of another look"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert "--dry-run" in refused.json()["error"]["hint"]
        assert watcher.doubt is not None
        assert (await api.post("/adopt/store", json={"seen": shown["digest"]})).status_code == 422
        assert (await api.post("/adopt/store", json={"shown": shown["digest"]})).status_code == 200
        async with asyncio.timeout(30):
            while watcher.doubt is not None:
                await asyncio.sleep(0.02)
        after = watcher.snapshot.placements["chat-r1"]
        assert after.order > true.order
        assert after.spec == true.spec
        stored = await control.store.get(ChangeKind.PLACEMENT, "chat-r1")
        assert stored is not None
        assert verify_placement(VerifyKeys([KEY.public]), SignedPlacement.from_json(stored), node=true.node) == after
