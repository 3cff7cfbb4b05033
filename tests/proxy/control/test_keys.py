"""API keys through the Control API: shown once, ended at once."""

from nebula_core.records.access import Role
from nebula_core.records.event import ChangeKind
from tests.support.control import RunningControl


async def test_a_key_is_shown_once_and_works_at_once(control: RunningControl) -> None:
    async with control.client(Role.ADMIN) as api:
        made = await api.post("/keys", json={"name": "ci", "role": "operator"})
        assert made.status_code == 201, made.text
        token, record = made.json()["key"], made.json()["record"]
        assert token.startswith(f"nbl_{record['id']}_")
        control.tokens[Role.OPERATOR] = token
        async with control.client(Role.OPERATOR) as fresh:
            me = (await fresh.get("/whoami")).json()
            assert me == {"name": "ci", "role": "operator", "key_id": record["id"]}
        listed = (await api.get("/keys")).text
        secret = token.split("_", 2)[2]
        assert secret not in listed
        assert "sha256" not in listed
        stored = await control.store.get(ChangeKind.KEY, record["id"])
        assert stored is not None
        assert secret not in stored
        assert secret not in "".join(one.to_json() for one in await control.store.read_audit())

        revoked = await api.delete(f"/keys/{record['id']}")
        assert revoked.json()["record"]["revoked"] is True
        async with control.client(Role.OPERATOR) as ended:
            assert (await ended.get("/whoami")).status_code == 401


async def test_the_last_admin_key_stays(control: RunningControl) -> None:
    async with control.client(Role.ADMIN) as api:
        me = (await api.get("/whoami")).json()["key_id"]
        refused = await api.delete(f"/keys/{me}")
        assert refused.status_code == 409
        assert "last admin" in refused.json()["error"]["message"]
        await api.post("/keys", json={"name": "second", "role": "admin"})
        assert (await api.delete(f"/keys/{me}")).status_code == 200
        assert (await api.get("/whoami")).status_code == 401


async def test_bad_orders(control: RunningControl) -> None:
    async with control.client(Role.ADMIN) as api:
        for body in (
            {"name": "x", "role": "root"},
            {"name": ""},
            {"name": "a\x1b[31m"},
            {"name": "x", "modles": []},
            {"name": "x", "expires_in_seconds": -1},
            {"name": "x", "models": ["../x"]},
        ):
            answer = await api.post("/keys", json=body)
            assert answer.status_code == 422, body
        shown = await api.post("/keys", json={"name": "x"}, params={"dry_run": 1})
        assert shown.json()["key"] is None
        assert (await api.delete("/keys/nope")).status_code == 404
    assert len(control.process.watcher.snapshot.keys) == len(Role)


async def test_a_repeated_creation_answers_the_same_key(control: RunningControl) -> None:
    """The answer may have been lost: a second key that nobody knows of must not be left behind."""
    async with control.client(Role.ADMIN) as api:
        first = await api.post("/keys", json={"name": "x"}, headers={"idempotency-key": "k1"})
        again = await api.post("/keys", json={"name": "x"}, headers={"idempotency-key": "k1"})
        assert first.json() == again.json()
    assert len(control.process.watcher.snapshot.keys) == len(Role) + 1


async def test_limits_are_kept_with_the_key_and_shown(control: RunningControl) -> None:
    limits = {
        "max_inflight": 8,
        "requests_per_minute": 600,
        "tokens_per_minute": 100_000,
        "max_streams": 4,
        "max_priority": 3,
    }
    async with control.client(Role.ADMIN) as api:
        made = await api.post("/keys", json={"name": "batch", **limits})
        assert made.status_code == 201, made.text
        record = made.json()["record"]
        assert {name: record[name] for name in limits} == limits
        assert control.process.watcher.snapshot.keys[record["id"]].requests_per_minute == 600
        (listed,) = [one for one in (await api.get("/keys")).json()["items"] if one["id"] == record["id"]]
        assert {name: listed[name] for name in limits} == limits
        for name, wrong in (
            ("requests_per_minute", 0),
            ("tokens_per_minute", -1),
            ("max_streams", 0),
            ("max_priority", 11),
        ):
            assert (await api.post("/keys", json={"name": "x", name: wrong})).status_code == 422
