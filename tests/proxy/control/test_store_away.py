"""Without its store the Control API goes on showing what it knows, and changes nothing."""

import asyncio
from collections.abc import Callable

from nebula_core.records.access import Role
from tests.support.control import RunningControl, following, running_control
from tests.support.store import StoreServer

BRIEF = {"socket_timeout_seconds": 0.5}


async def away(control: RunningControl) -> None:
    async with asyncio.timeout(10):
        while control.process.watcher.reachable:
            await asyncio.sleep(0.02)


async def test_reads_go_on_and_changes_are_refused_until_it_is_back(own_store: Callable[..., StoreServer]) -> None:
    server = own_store()
    async with running_control(server, store_settings=BRIEF) as control:
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
            await control.process.watcher.synced(10)
            assert (await api.post("/deployments/chat/scale", json={"replicas": 2})).status_code == 200
            await control.ready("chat", 2)
            assert (await api.get(f"{control.url}/readyz")).json()["store_reachable"] is True


async def test_a_start_without_a_store_lets_nobody_in_but_says_why(own_store: Callable[..., StoreServer]) -> None:
    server = own_store()
    server.kill()
    async with running_control(server, synced=False, store_settings=BRIEF) as control, control.client(None) as api:
        assert (await api.get(f"{control.url}/healthz")).status_code == 200
        assert (await api.get(f"{control.url}/readyz")).status_code == 503
        refused = await api.get("/whoami", headers={"authorization": "Bearer nbl_abcdef_" + "x" * 40})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        server.start()
        await control.process.watcher.synced(10)
        assert (await api.get(f"{control.url}/readyz")).status_code == 200
        assert (await api.get("/whoami")).status_code == 401


async def test_a_store_that_lost_its_memory_is_not_written_over(own_store: Callable[..., StoreServer]) -> None:
    server = own_store()
    async with running_control(server, store_settings=BRIEF) as control:
        await control.deploy("chat", 1)
        await control.ready()
        server.kill()
        await away(control)
        server.lose_data()
        server.start()
        async with asyncio.timeout(10):
            while not control.process.watcher.emptied:
                await asyncio.sleep(0.02)
        async with control.client(Role.ADMIN) as api:
            view = (await api.get("/deployments/chat")).json()
            assert view["replicas_ready"] == 1
            refused = await api.post("/deployments/chat/scale", json={"replicas": 0})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_emptied")
            assert "empty" in (await api.get("/cluster")).json()["brake"]
