"""A running control process for every test of the Control API."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nebula_core.records.access import Role
from nebula_proxy.control import actions, following
from tests.support.command_line import Nebula, command_line
from tests.support.control import RunningControl, running_control
from tests.support.store import StoreServer


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the process waits for others is not what is tried here: a machine that stands still changes no answer."""
    monkeypatch.setattr(actions, "SEEN_SECONDS", 30.0)
    monkeypatch.setattr(following, "FIRST_LINES_SECONDS", 30.0)


@pytest.fixture
async def control(store_server: StoreServer) -> AsyncIterator[RunningControl]:
    async with running_control(store_server) as running:
        yield running


@pytest.fixture
def nebula(control: RunningControl, tmp_path: Path, monkeypatch, capsys) -> Nebula:
    return command_line(control, tmp_path, monkeypatch, capsys, Role.ADMIN)
