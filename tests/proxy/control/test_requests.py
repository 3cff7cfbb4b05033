"""`/requests`: what is open in the proxies, why one went where it went, and ending one; proxies and engine are real."""

import asyncio
from typing import Any

import httpx
import pytest

from nebula_core.records.access import Role
from nebula_core.records.decision import DecisionRecord
from nebula_proxy.control import live
from tests.support.agent import eventually
from tests.support.control import RunningControl
from tests.support.scripted_engine import talk
from tests.support.worker import only_workers, worker


@pytest.fixture(autouse=True)
def workers_alone(control: RunningControl, monkeypatch: pytest.MonkeyPatch) -> None:
    only_workers(control)
    monkeypatch.setattr(live, "REMEMBERED_SECONDS", 0.0)
    monkeypatch.setattr(live, "PATIENCE_SECONDS", 30.0)


async def page(api: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await api.get("/requests", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_what_is_open_is_shown_at_once_and_only_while_somebody_looks(control: RunningControl) -> None:
    async with worker(control) as one, control.client(Role.VIEWER) as api:
        assert not one.inquiries.shown
        task = one.ask(**{"x-request-id": "mine"})
        await one.streaming()
        found = await page(api)
        assert one.inquiries.shown
        assert (found["inflight"], found["streaming"], found["shown"], found["silent"]) == (1, 1, 1, [])
        [row] = found["items"]
        assert (row["id"], row["state"], row["proxy"], row["replica"]) == ("mine", "streaming", "w1", "m-r0")
        assert row["key_name"] == "test"
        assert row["tokens"] == 1
        assert row["ttft_seconds"] is not None
        assert "canary" not in str(found)

        await one.running.plane.aclose()
        await task
        await until_recorded(api, "mine")
        found = await page(api, state="ended")
        [row] = found["items"]
        assert (row["state"], row["outcome"], row["status"]) == ("ended", "broken", 503)


async def until_recorded(api: httpx.AsyncClient, name: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        answer = await api.get(f"/requests/{name}")
        found: dict[str, Any] = answer.json()
        return found if answer.status_code == 200 and found["outcome"] != "open" else None

    found = await eventually(look, f"{name} is recorded", 30)
    assert found is not None
    return found


async def test_why_of_an_open_and_of_an_ended_request(control: RunningControl) -> None:
    async with worker(control) as one, control.client(Role.VIEWER) as api:
        task = one.ask(**{"x-request-id": "mine"})
        await one.streaming()
        answer = await api.get("/requests/mine")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["outcome"], found["status"], found["kept_because"]) == ("open", None, "asked")
        [attempt] = found["attempts"]
        assert attempt["replica"] == "m-r0"
        assert attempt["candidates"][0]["chosen"] is True
        for exchange in one.running.plane.ledger:
            exchange.cancel()
        await task
        found = await until_recorded(api, "mine")
        assert (found["outcome"], found["status"]) == ("cancelled", 499)
        assert DecisionRecord.model_validate(found).replica == "m-r0"

        missing = await api.get("/requests/nope")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "request_not_found"
        assert missing.json()["error"]["hint"]
        assert (await api.get("/requests/no%20name")).status_code in {400, 422}


async def test_cancel_reaches_the_one_that_has_it(control: RunningControl) -> None:
    async with worker(control) as one, worker(control, "w2") as two, control.client(Role.OPERATOR) as api:
        other = two.ask(**{"x-request-id": "theirs"})
        task = one.ask(**{"x-request-id": "mine"})
        await one.streaming()
        await two.streaming()

        shown = await api.post("/requests/mine/cancel", params={"dry_run": 1})
        assert shown.status_code == 200, shown.text
        assert shown.json()["summary"].startswith("cancels mine (m, on m-r0")
        assert len(one.running.plane.ledger) == 1

        key = {"idempotency-key": "k1"}
        done = await api.post("/requests/mine/cancel", headers=key)
        assert done.json()["summary"].startswith("cancelled mine")
        answer = await task
        assert b'"code":"request_cancelled"' in answer.content
        assert b"[DONE]" not in answer.content
        await asyncio.wait_for(one.engine.conversations[-1].gone.wait(), 30)
        assert (await api.post("/requests/mine/cancel", headers=key)).json() == done.json()
        again = await api.post("/requests/mine/cancel")
        assert again.status_code == 200, again.text
        await until_recorded(api, "mine")
        assert (await api.post("/requests/mine/cancel")).json()["summary"] == again.json()["summary"]
        assert again.json()["summary"] == "nothing to do: mine has ended (cancelled)"
        assert len(two.running.plane.ledger) == 1
        assert (await api.post("/requests/nope/cancel")).status_code == 404
        audit = [(entry.stage, entry.object, entry.result) for entry in await control.store.read_audit()]
        assert ("intent", "request/mine", None) in audit
        assert ("result", "request/mine", "done") in audit
        assert ("result", "request/mine", "unchanged") in audit
        events = [event.message for event in await control.store.read_events() if event.kind == "request_cancelled"]
        assert len(events) == 1
        assert events[0].startswith("cancelled mine")
        two.engine.script = talk
        await two.running.plane.aclose()
        await other


async def test_a_viewer_may_look_but_not_cancel(control: RunningControl) -> None:
    async with control.client(Role.VIEWER) as api:
        assert (await api.post("/requests/mine/cancel")).status_code == 403
    async with control.client(Role.CLIENT) as api:
        assert (await api.get("/requests")).status_code == 403
        assert (await api.get("/requests/mine")).status_code == 403


async def test_a_proxy_that_says_nothing_is_named_and_not_waited_for(
    control: RunningControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker(control) as one, control.client(Role.OPERATOR) as api:
        task = one.ask(**{"x-request-id": "mine"})
        await one.streaming()
        assert (await page(api))["silent"] == []
        monkeypatch.setattr(control.desk.live, "proxies", lambda: ["frozen", "w1"])
        with monkeypatch.context() as patience:
            patience.setattr(live, "PATIENCE_SECONDS", 0.2)
            found = await page(api)
            assert found["silent"] == ["frozen"]
            assert [row["id"] for row in found["items"]] == ["mine"]
            assert (await api.get("/requests/nope")).status_code == 404
        # Who has it answers, and nobody waits for the other.
        assert (await api.post("/requests/mine/cancel")).status_code == 200
        await task


async def test_rows_are_filtered_and_paged(control: RunningControl) -> None:
    records = [
        DecisionRecord(
            id=f"r{number}",
            proxy="w9",
            at=float(number),
            path="/v1/chat/completions",
            model="chat" if number % 2 else "other",
            key_id="k1",
            key_name="ci",
            outcome="ok",
            status=200,
        )
        for number in range(10)
    ]
    await control.store.append_requests(records)
    async with control.client(Role.VIEWER) as api:
        first = await page(api, latest=4)
        assert [row["id"] for row in first["items"]] == ["r9", "r8", "r7", "r6"]
        second = await page(api, latest=4, cursor=first["next"])
        assert [row["id"] for row in second["items"]] == ["r5", "r4", "r3", "r2"]
        last = await page(api, latest=4, cursor=second["next"])
        assert [row["id"] for row in last["items"]] == ["r1", "r0"]
        assert last["next"] is None
        assert [row["id"] for row in (await page(api, model="chat"))["items"]] == ["r9", "r7", "r5", "r3", "r1"]
        assert len((await page(api, key="ci"))["items"]) == 10
        assert (await page(api, key="k2"))["items"] == []
        assert (await page(api, state="open"))["items"] == []
        assert (await page(api, replica="x"))["items"] == []
        assert (await api.get("/requests", params={"state": "odd"})).status_code == 422
