"""Deployments through the Control API: applied, scaled, undone, with the plan shown first."""

import pytest

from nebula_core.records.access import Role
from tests.support.control import RunningControl

SPEC = {"source": "sim", "engine": "simulated", "replicas": 2, "gpus": 1}


async def test_a_deployment_is_made_and_its_replicas_get_ready(control: RunningControl) -> None:
    async with control.client(Role.OPERATOR) as api:
        made = await api.put("/deployments/chat", json=SPEC, headers={"if-match": "0"})
        assert made.status_code == 200, made.text
        answer = made.json()
        assert answer["dry_run"] is False
        assert "starts chat-r1" in answer["summary"]
        assert answer["deployment"]["generation"] == 1
        await control.ready("chat", 2)
        view = (await api.get("/deployments/chat")).json()
        assert (view["status"], view["replicas_ready"], view["replicas_wanted"]) == ("ready", 2, 2)
        assert view["updated_by"] == "operator-key"
        replicas = (await api.get("/replicas")).json()["items"]
        assert [one["id"] for one in replicas] == ["chat-r1", "chat-r2"]
        assert {one["phase"] for one in replicas} == {"ready"}
