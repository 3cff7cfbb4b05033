"""Events and audit: what was done can be read, followed, and was not altered."""

from nebula_core.records.access import Role
from nebula_core.records.event import Event
from nebula_core.security.chain import first_break
from tests.support.control import RunningControl, following


async def test_each_act_leaves_an_intent_a_result_and_an_event(control: RunningControl) -> None:
    headers = {"x-request-id": "ticket-17"}
    async with control.client(Role.OPERATOR) as api:
        await api.post("/nodes/n1/cordon", headers=headers)
        await api.post("/nodes/n1/cordon")
        await api.put("/deployments/chat", json={"source": "sim"}, headers={"if-match": "5"})
        entries = (await api.get("/audit")).json()["items"]
        found = [(one["stage"], one["object"], one["result"]) for one in entries]
        assert found == [
            ("intent", "node/n1", None),
            ("result", "node/n1", "done"),
            ("intent", "node/n1", None),
            ("result", "node/n1", "unchanged"),
            ("intent", "deployment/chat", None),
            ("result", "deployment/chat", "refused: conflict"),
        ]
        assert entries[0]["request_id"] == entries[1]["request_id"] == "ticket-17"
        assert entries[0]["actor"] == "operator-key"
        assert entries[0]["call"] == "POST /api/v1/nodes/n1/cordon"
        assert first_break(await control.store.read_audit()) is None
        mine = [one for one in (await api.get("/events")).json()["items"] if one["actor"] == "operator-key"]
        assert [(one["kind"], one["object"]) for one in mine] == [("cordon", "node/n1")]


async def test_pages_go_back_in_time(control: RunningControl) -> None:
    for number in range(25):
        await control.store.append_event(Event(kind="k", object="x/y", message=f"{number}", actor="t", at=0.0))
    async with control.client(Role.VIEWER) as api:
        seen: list[str] = []
        cursor = None
        while True:
            params = {"limit": 10, **({"cursor": cursor} if cursor else {})}
            page = (await api.get("/events", params=params)).json()
            seen = [one["message"] for one in page["items"] if one["kind"] == "k"] + seen
            cursor = page["next"]
            if cursor is None:
                break
        assert seen == [f"{number}" for number in range(25)]
        for bad in ("x", "1", "1-1; DROP", "(1-1", "+"):
            assert (await api.get("/events", params={"cursor": bad})).status_code == 422
        assert (await api.get("/events", params={"limit": 100_000})).status_code == 422


async def test_events_and_audit_are_followed(control: RunningControl) -> None:
    async with (
        control.client(Role.OPERATOR) as api,
        following(api, "/events", follow=1) as events,
        following(api, "/audit", follow=1) as audit,
    ):
        await events.opened()
        await audit.opened()
        await api.post("/nodes/n1/cordon")
        name, event = await events.until(lambda _, data: data["kind"] == "cordon")
        assert (name, event["object"]) == ("event", "node/n1")
        name, entry = await audit.next()
        assert (name, entry["stage"]) == ("audit", "intent")
        assert (await audit.next())[1]["stage"] == "result"


async def test_following_goes_on_after_the_last_seen(control: RunningControl) -> None:
    ids = [
        await control.store.append_event(Event(kind="k", object="x/y", message=f"{number}", actor="t", at=0.0))
        for number in range(5)
    ]
    async with (
        control.client(Role.VIEWER, headers={"last-event-id": ids[2]}) as api,
        following(api, "/events", follow=1) as events,
    ):
        assert [(await events.next())[1]["message"] for _ in range(2)] == ["3", "4"]
