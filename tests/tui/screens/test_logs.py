"""Screen 6: the logs of what was chosen, merged by time, searched, filtered, broken and mended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nebula_core.records.views import LogLine
from nebula_tui.adapters.control import NotFound, Unreachable
from nebula_tui.screens.logs import LogsView
from nebula_tui.widgets import FleetTable
from tests.support.fleet import WALL, FakeControl, log_lines, small_fleet
from tests.tui.screens.stage import SIZES, Playing, on_stage, scene

Compare = Callable[..., bool]


def four_logs(control: FakeControl) -> None:
    for ordinal in range(1, 5):
        name = f"deepseek-v3.2-r{ordinal}"
        control.lines[name] = log_lines(name, 60 + ordinal, at=WALL + 90)


async def flowed(played: Playing) -> None:
    """Lets the lines that wait come to the ring."""
    view = played.view(LogsView)
    await played.until(lambda: len(view._merger))
    for _ in range(3):
        played.clock.go(0.3)
        view.flush()
        view.ring.drain()
        await played.settle()


@pytest.mark.parametrize("size", SIZES)
def test_look(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("3", "down", "down", "down", "l", flowed, before=four_logs)
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_search(snap_compare: Compare, size: tuple[int, int]) -> None:
    async def searched(played: Playing) -> None:
        await played.press("slash")
        await played.spell("preempt")
        await played.press("enter", "n")

    app, play = scene("3", "down", "down", "down", "l", flowed, searched, before=four_logs)
    assert snap_compare(app, terminal_size=size, run_before=play)


def test_without_a_source(snap_compare: Compare) -> None:
    app, play = scene("6")
    assert snap_compare(app, terminal_size=SIZES[1], run_before=play)


async def test_the_log_of_a_failing_replica_in_three_keys() -> None:
    async with on_stage() as played:
        played.control.lines["glm-4.6-r3"] = [LogLine(at=WALL, source="x", text="RuntimeError: no kernel image")]
        # On the overview, what fails stands in the list of troubles, and its key is l.
        table = played.app.screen.query_one("#ov-trouble-table", FleetTable)
        table.focus()
        await played.settle()
        await played.press("down", "l")
        await flowed(played)
        await played.sees("[6 Logs]", "glm-4.6/r3", "RuntimeError: no kernel image")


async def test_two_replicas_are_merged_by_the_time_of_writing() -> None:
    async with on_stage(small_fleet()) as played:
        played.control.lines = {
            "demo-r1": [LogLine(at=WALL + at, source="x", text=f"one {at}") for at in (1, 3)],
            "demo-r2": [LogLine(at=WALL + at, source="x", text=f"two {at}") for at in (0, 2)],
        }
        await played.press("3", "l")
        view = played.view(LogsView)
        await played.until(lambda: len(view._merger) == 4)
        await flowed(played)
        assert [entry.text for entry in view.ring.shown_entries()] == ["two 0", "one 1", "two 2", "one 3"]


async def test_new_lines_follow() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "down", "l")
        await played.until(lambda: "demo-r1" in played.control.log_feed)
        played.control.log_feed["demo-r1"].put_nowait(LogLine(at=WALL, source="x", text="hello from the engine"))
        await flowed(played)
        await played.sees("hello from the engine", "● FOLLOW")


async def test_a_broken_source_is_told_and_mended() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "down", "l")
        await played.until(lambda: "demo-r1" in played.control.log_feed)
        played.control.log_feed["demo-r1"].put_nowait(Unreachable("the control process went away"))
        await flowed(played)
        played.view(LogsView).refresh_data()
        await played.sees("may be missing", "not connected: demo/r1")
        await played.until(lambda: len([call for call in played.control.calls if call[0] == "logs"]) >= 2)
        assert played.control.calls[-1] == ("logs", "demo-r1", 0, True)
        played.control.log_feed["demo-r1"].put_nowait(LogLine(at=WALL, source="x", text="back again"))
        await flowed(played)
        await played.sees("back again")


async def test_a_replica_that_is_gone_is_not_asked_for_ever() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "down", "l")
        await played.until(lambda: "demo-r1" in played.control.log_feed)
        played.control.log_feed["demo-r1"].put_nowait(NotFound("there is no replica 'demo-r1'"))
        await flowed(played)
        await played.sees("there is no replica")
        assert len([call for call in played.control.calls if call[0] == "logs"]) == 1


async def test_include_exclude_and_escape() -> None:
    async with on_stage(small_fleet()) as played:
        played.control.lines["demo-r1"] = [
            LogLine(at=WALL + at, source="x", text=text) for at, text in enumerate(("GET /health", "POST /v1", "other"))
        ]
        await played.press("3", "down", "l")
        await flowed(played)
        ring = played.view(LogsView).ring
        await played.press("minus")
        await played.spell("health")
        await played.press("enter")
        await played.until(lambda: [entry.text for entry in ring.shown_entries()] == ["POST /v1", "other"])
        await played.press("ampersand")
        await played.spell("POST")
        await played.press("enter")
        await played.until(lambda: [entry.text for entry in ring.shown_entries()] == ["POST /v1"])
        await played.press("escape")
        await played.until(lambda: ring.status.shown == 3)


async def test_saving_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    async with on_stage(small_fleet()) as played:
        played.control.lines["demo-r1"] = [LogLine(at=WALL, source="x", text="kept")]
        await played.press("3", "down", "l")
        await flowed(played)
        await played.press("ctrl+s")
        await played.sees("1 lines saved to")
        saved = list((tmp_path / "nebula" / "logs").iterdir())
        assert [path.read_text() for path in saved] == [f"{WALL:.3f} demo/r1 kept\n"]
        assert saved[0].stat().st_mode & 0o077 == 0
