"""Deployments through the Control API: applied, scaled, undone, with the plan shown first."""

import httpx
import pytest

from nebula_core.records.access import Role
from tests.support.control import RunningControl

SPEC = {"source": "sim", "engine": "simulated", "replicas": 2, "gpus": 1}


def error_of(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["origin"] == "nebula"
    assert error["hint"]
    return error


async def test_a_deployment_is_made_and_its_replicas_get_ready(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        made = await api.put("/deployments/chat", json=SPEC, headers={"if-match": "0"})
        assert made.status_code == 200, made.text
        answer = made.json()
        assert answer["dry_run"] is False
        assert "starts chat-r1" in answer["summary"]
        assert answer["deployment"]["generation"] == 1
        await control.ready("chat", 2)
        got = await api.get("/deployments/chat")
        view = got.json()
        assert got.headers["etag"] == '"1"'
        assert (view["status"], view["replicas_ready"], view["replicas_wanted"]) == ("ready", 2, 2)
        assert view["updated_by"] == "operator-key"
        replicas = (await api.get("/replicas")).json()["items"]
        assert [one["id"] for one in replicas] == ["chat-r1", "chat-r2"]
        assert {one["phase"] for one in replicas} == {"ready"}
        cluster = (await api.get("/cluster")).json()
        assert cluster["openai_base_url"] == "http://127.0.0.1:8081/v1"
        assert cluster["leader"] == control.process.planner.holder


async def test_a_dry_run_shows_the_plan_and_changes_nothing(control: RunningControl) -> None:
    await control.deploy("chat", 1)
    await control.ready()
    revision = await control.store.revision()
    async with control.client(Role.OPERATOR) as api:
        shown = (await api.post("/deployments/chat/scale", json={"replicas": 3}, params={"dry_run": 1})).json()
    assert shown["dry_run"] is True
    assert [one["replica"] for one in shown["plan"]["changes"]] == ["chat-r2", "chat-r3"]
    assert shown["deployment"]["replicas_wanted"] == 3
    assert shown["estimated_ready_seconds"] == 3.0
    assert (shown["inflight_affected"], shown["last_ready"]) == (0, False)
    assert await control.store.revision() == revision
    assert await control.store.read_audit() == []


async def test_scaling_down_tells_what_it_costs_and_does_it(control: RunningControl) -> None:
    await control.deploy("chat", 2)
    await control.ready()
    control.model.proxies["proxy-0"].inflight = {"chat-r2": 7}
    await control.until(lambda look: look.replicas["chat-r2"].inflight == 7, "requests are open")
    async with control.client(Role.OPERATOR) as api:
        shown = (await api.post("/deployments/chat/scale", json={"replicas": 1}, params={"dry_run": 1})).json()
        assert (shown["inflight_affected"], shown["last_ready"]) == (7, False)
        shown = (await api.post("/deployments/chat/scale", json={"replicas": 0}, params={"dry_run": 1})).json()
        assert shown["last_ready"] is True
        done = (await api.post("/deployments/chat/scale", json={"replicas": 1})).json()
        assert done["deployment"]["generation"] == 2
        await control.until(lambda look: look.replicas["chat-r2"].phase == "draining", "it drains, as streams are open")
        control.model.proxies["proxy-0"].inflight = {}
        await control.until(lambda look: set(look.replicas) == {"chat-r1"}, "it is gone")
        assert (await api.post("/deployments/chat/scale", json={"replicas": 1})).json()["summary"].startswith("nothing")


async def test_what_fits_nowhere_says_why(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        answer = (await api.put("/deployments/big", json={**SPEC, "gpus": 8}, params={"dry_run": 1})).json()
        [blocked] = answer["plan"]["unplaceable"]
        assert (blocked["deployment"], blocked["count"]) == ("big", 2)
        assert {one["node"] for one in blocked["verdicts"]} == {"n1", "n2"}
        assert "blocked" in answer["summary"]
        assert (await api.put("/deployments/big", json={**SPEC, "gpus": 8})).status_code == 200
        await control.until(lambda look: look.deployments["big"].reasons, "the reason is shown")
        view = (await api.get("/deployments/big")).json()
        assert view["status"].startswith("blocked: ")


async def test_only_what_concerns_the_change_is_shown(control: RunningControl) -> None:
    await control.deploy("big", 1, gpus=8)
    await control.deploy("chat", 1)
    await control.ready()
    async with control.client(Role.OPERATOR) as api:
        shown = (await api.post("/deployments/chat/scale", json={"replicas": 2}, params={"dry_run": 1})).json()
    assert {entry["deployment"] for entry in shown["plan"]["entries"]} == {"chat"}
    assert shown["plan"]["unplaceable"] == []


async def test_a_stale_generation_is_a_conflict(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        await api.put("/deployments/chat", json=SPEC)
        answer = await api.put("/deployments/chat", json={**SPEC, "replicas": 1}, headers={"if-match": "0"})
        error = error_of(answer, 409)
        assert error["code"] == "conflict"
        assert "generation 1" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["etag"] == '"1"'
        stale = await api.post("/deployments/chat/scale", json={"replicas": 1}, headers={"if-match": '"7"'})
        error_of(stale, 409)
        stale = await api.post(
            "/deployments/chat/scale", json={"replicas": 1}, headers={"if-match": "7"}, params={"dry_run": 1}
        )
        error_of(stale, 409)
        good = await api.post("/deployments/chat/scale", json={"replicas": 1}, headers={"if-match": '"1"'})
        assert good.status_code == 200
        error_of(await api.put("/deployments/new", json=SPEC, headers={"if-match": "*"}), 409)
        error_of(await api.put("/deployments/chat", json=SPEC, headers={"if-match": "three"}), 422)


async def test_undo_restart_and_rollback(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        await api.put("/deployments/chat", json={**SPEC, "args": {"max-model-len": 100}, "replicas": 1})
        await control.ready()
        await api.put("/deployments/chat", json={**SPEC, "args": {"max-model-len": 200}, "replicas": 1})
        await api.post("/deployments/chat/scale", json={"replicas": 2})
        await control.ready()

        undone = (await api.post("/deployments/chat/undo")).json()["deployment"]
        assert (undone["generation"], undone["replicas_wanted"]) == (4, 1)
        redone = (await api.post("/deployments/chat/undo")).json()["deployment"]
        assert redone["replicas_wanted"] == 2

        back = (await api.post("/deployments/chat/rollback")).json()["deployment"]
        assert (back["spec"]["args"], back["replicas_wanted"]) == ({"max-model-len": 100}, 2)
        forth = await api.post("/deployments/chat/rollback", json={"generation": 3}, params={"dry_run": 1})
        assert forth.json()["deployment"]["spec"]["args"] == {"max-model-len": 200}
        error_of(await api.post("/deployments/chat/rollback", json={"generation": 99}), 409)

        await control.until(
            lambda look: [one.generation for one in look.replicas.values()] == [6, 6], "both are of the old args"
        )
        await control.ready()
        before = set(control.desk.look().replicas)
        restarted = await api.post("/deployments/chat/restart")
        assert restarted.status_code == 200
        await control.until(
            lambda look: (
                not before & set(look.replicas) and look.deployments["chat"].replicas_ready == len(look.replicas) == 2
            ),
            "all replicas are new ones",
        )


async def test_deleting_drains_and_forgets(control: RunningControl) -> None:
    await control.deploy("chat", 2)
    await control.ready()
    async with control.client(Role.OPERATOR) as api:
        shown = (await api.delete("/deployments/chat", params={"dry_run": 1})).json()
        assert shown["last_ready"] is True
        assert (await api.delete("/deployments/chat")).status_code == 200
        error_of(await api.get("/deployments/chat"), 404)
        error_of(await api.delete("/deployments/chat"), 404)
    await control.until(lambda look: not look.replicas, "the replicas are gone")


async def test_an_unknown_name_is_told_its_neighbours(control: RunningControl) -> None:
    await control.deploy("chat", 0)
    async with control.client(Role.OPERATOR) as api:
        error = error_of(await api.get("/deployments/chta"), 404)
        assert error["code"] == "deployment_not_found"
        assert "did you mean chat" in error["hint"]
        error_of(await api.post("/deployments/chta/scale", json={"replicas": 1}), 404)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({**SPEC, "replica": 3}, "replica", "did you mean 'replicas'?"),
        ({**SPEC, "limits": {"wating": 3}}, "limits.wating", "did you mean 'waiting'?"),
        ({**SPEC, "adapters": [{"name": "a", "source": "b", "sorce": "c"}]}, "adapters[0].sorce", "source"),
        ({**SPEC, "replicas": -1}, "replicas", "schema"),
        ({**SPEC, "replicas": "many"}, "replicas", "schema"),
        ({**SPEC, "args": {"--tp": 2}}, "args", "schema"),
        ({"engine": "simulated"}, "source", "schema"),
        ([1, 2], "body", "schema"),
    ],
)
async def test_bad_files_name_the_field(control: RunningControl, body: object, param: str, said: str) -> None:
    async with control.client(Role.OPERATOR) as api:
        error = error_of(await api.put("/deployments/chat", json=body), 422)
        assert error["param"] == param
        assert said in error["hint"]
        assert "chat" not in control.desk.look().deployments


async def test_bodies_that_are_not_json(control: RunningControl) -> None:
    headers = {"content-type": "application/json"}
    async with control.client(Role.OPERATOR) as api:
        for raw in (b"{", b"\xff\xfe", b"[" * 100_000, b'{"replicas": NaN}'):
            answer = await api.post("/deployments/chat/scale", content=raw, headers=headers)
            assert answer.status_code in {400, 422}, answer.text
            assert answer.json()["error"]["hint"]
        error_of(await api.put("/deployments/-x", json=SPEC), 422)
        error_of(await api.put(f"/deployments/{'x' * 64}", json=SPEC), 422)


async def test_the_same_call_twice_is_done_once(control: RunningControl) -> None:
    key = {"idempotency-key": "abc-1"}
    async with control.client(Role.OPERATOR) as api, control.client(Role.ADMIN) as other:
        await api.put("/deployments/chat", json={**SPEC, "replicas": 0})
        first = await api.post("/deployments/chat/restart", headers=key)
        again = await api.post("/deployments/chat/restart", headers=key)
        assert first.json() == again.json()
        assert control.desk.look().deployments["chat"].generation == 2
        reused = await api.post("/deployments/chat/scale", json={"replicas": 1}, headers=key)
        assert error_of(reused, 422)["code"] == "idempotency_key_reused"
        # Another principal's key is another key.
        assert (await other.post("/deployments/chat/restart", headers=key)).json()["deployment"]["generation"] == 3


async def test_many_at_once_lose_no_change(control: RunningControl) -> None:
    import asyncio

    async with control.client(Role.OPERATOR) as api:
        await api.put("/deployments/chat", json={**SPEC, "replicas": 0})
        answers = await asyncio.gather(*(api.post("/deployments/chat/restart") for _ in range(4)))
    assert [one.status_code for one in answers] == [200] * 4
    assert control.desk.look().deployments["chat"].generation == 5


async def test_an_adapter_may_not_take_a_name_that_is_there(control: RunningControl) -> None:
    adapter = {"adapters": [{"name": "chat", "source": "x"}]}
    async with control.client(Role.OPERATOR) as api:
        assert (await api.put("/deployments/chat", json=SPEC)).status_code == 200
        for params in ({}, {"dry_run": 1}):
            answer = await api.put("/deployments/other", json=SPEC | adapter, params=params)
            assert error_of(answer, 409)["code"] == "conflict"
        named = {"adapters": [{"name": "sql", "source": "x"}]}
        assert (await api.put("/deployments/other", json=SPEC | named)).status_code == 200
        assert (await api.put("/deployments/other", json=SPEC)).status_code == 200
        assert (await api.put("/deployments/sql", json=SPEC)).status_code == 200
        # Taking the change back would bring the adapter's name back, which somebody else has by now.
        error_of(await api.post("/deployments/other/undo"), 409)
