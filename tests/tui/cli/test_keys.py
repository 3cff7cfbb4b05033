"""`nebula keys` against a real Control API: limits go in by options and are seen in the list."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nebula_core.records.access import Role
from tests.support.command_line import Nebula, command_line
from tests.support.control import RunningControl, running_control
from tests.support.store import StoreServer


@pytest.fixture
async def control(store_server: StoreServer) -> AsyncIterator[RunningControl]:
    async with running_control(store_server) as running:
        yield running


@pytest.fixture
def nebula(control: RunningControl, tmp_path: Path, monkeypatch, capsys) -> Nebula:
    return command_line(control, tmp_path, monkeypatch, capsys, Role.ADMIN)


async def test_limits_of_a_key(nebula: Nebula) -> None:
    options = (
        "--requests-per-minute",
        "60",
        "--tokens-per-minute",
        "9000",
        "--max-streams",
        "4",
        "--max-priority",
        "2",
    )
    code, said, err = await nebula("-o", "json", "keys", "create", "batch", *options)
    assert code == 0, err
    made = json.loads(said)
    assert made["record"]["requests_per_minute"] == 60
    assert made["record"]["max_priority"] == 2
    code, table, err = await nebula("keys", "list")
    assert code == 0, err
    assert "REQ/MIN" in table
    (row,) = [line.split() for line in table.splitlines() if "batch" in line]
    assert row[4:7] == ["60", "9000", "4"]
