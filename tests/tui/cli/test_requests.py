"""`nebula why`, `cancel` and `top` against a real Control API with a real worker behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nebula_core.records.access import Role
from nebula_tui.cli.requests import summed
from tests.support.command_line import Nebula, command_line
from tests.support.control import RunningControl, running_control
from tests.support.store import StoreServer
from tests.support.worker import Worker, only_workers, worker


@pytest.fixture
async def control(store_server: StoreServer) -> AsyncIterator[RunningControl]:
    async with running_control(store_server) as running:
        only_workers(running)
        yield running


@pytest.fixture
async def one(control: RunningControl) -> AsyncIterator[Worker]:
    async with worker(control) as running:
        yield running
        await running.running.plane.aclose()


@pytest.fixture
def nebula(control: RunningControl, tmp_path: Path, monkeypatch, capsys) -> Nebula:
    return command_line(control, tmp_path, monkeypatch, capsys, Role.OPERATOR)


async def test_top_why_and_cancel(one: Worker, nebula: Nebula) -> None:
    task = one.ask(**{"x-request-id": "mine"})
    await one.streaming()
    code, out, err = await nebula("top")
    assert code == 0, err
    assert "in flight 1  waiting 0  prefill 0  streaming 1" in err
    row = next(line for line in out.splitlines() if line.startswith("mine"))
    assert row.split()[:5] == ["mine", "test", "m", "m-r0", "streaming"]

    code, out, _ = await nebula("top", "--by", "model", "-o", "json")
    assert code == 0
    [group] = json.loads(out)
    assert (group["name"], group["open"], group["streaming"]) == ("m", 1, 1)

    code, out, _ = await nebula("why", "mine")
    assert code == 0
    assert "○ open · m · m/r0" in out
    assert "▶ r0" in out
    assert "chosen" in out

    code, _, err = await nebula("cancel", "mine")
    assert code == 2, err  # nobody to ask
    assert "plan: cancels mine (m, on m-r0, key test" in err
    code, _, err = await nebula("cancel", "mine", "--dry-run")
    assert code == 0
    assert not task.done()
    code, _, err = await nebula("cancel", "mine", "--yes", role=Role.VIEWER)
    assert code == 4, err
    code, _, err = await nebula("cancel", "mine", "--yes")
    assert (code, err.startswith("cancelled mine")) == (0, True)
    assert b"request_cancelled" in (await task).content

    for _ in range(200):
        code, out, _ = await nebula("why", "mine", "-o", "json")
        if json.loads(out)["outcome"] != "open":
            break
        await asyncio.sleep(0.01)
    assert json.loads(out)["outcome"] == "cancelled"
    code, _, err = await nebula("cancel", "mine")
    assert (code, err.strip()) == (0, "nothing to do: mine has ended (cancelled)")


async def test_errors_have_exit_codes_and_hints(one: Worker, nebula: Nebula) -> None:
    for words in (("why", "nope"), ("cancel", "nope", "--yes")):
        code, out, err = await nebula(*words)
        assert (code, out) == (3, "")
        assert "hint:" in err
    assert (await nebula("top", "--by", "colour"))[0] == 2
    assert (await nebula("top", "--watch", "-o", "yaml"))[0] == 2
    assert (await nebula("why", "x", role=Role.CLIENT))[0] == 4


def test_sums_are_of_what_is_known() -> None:
    rows = [
        {"model": "a", "state": "streaming", "tokens_per_second": 2.0, "age_seconds": 1.0, "stalled": None},
        {"model": "a", "state": "waiting", "tokens_per_second": None, "age_seconds": 4.0, "stalled": None},
        {"model": None, "state": "streaming", "tokens_per_second": None, "age_seconds": 9.0, "stalled": "client"},
    ]
    first, second = summed(rows, "model")
    assert (first["name"], first["open"], first["waiting"], first["tokens_per_second"]) == ("a", 2, 1, 2.0)
    assert first["oldest_seconds"] == 4.0
    assert (second["name"], second["stalled"], second["tokens_per_second"]) == ("–", 1, None)
    [unknown] = summed([{"model": "a", "state": "waiting", "age_seconds": None}], "model")
    assert unknown["oldest_seconds"] is None
