"""Screen 5: single requests live, why one went where it went, and ending one; from chat and log one key away."""

from collections.abc import Callable

import pytest

from nebula_core.records.views import LogLine, RequestsPage
from nebula_tui.adapters.control import Unreachable
from nebula_tui.messages import Selection
from nebula_tui.screens.plan_dialog import PlanDialog
from nebula_tui.screens.requests import RequestsView
from nebula_tui.screens.why import WhyScreen
from tests.support.fleet import WALL, FakeControl, decision_record, requests_page
from tests.tui.screens.stage import LARGE, SIZES, SMALL, Playing, on_stage, scene
from tests.tui.screens.test_logs import flowed

Compare = Callable[..., bool]
SECOND = "req-4bf92f3577-9f6e"


def busy(control: FakeControl) -> None:
    control.page = requests_page()
    control.records[SECOND] = decision_record(SECOND)
    control.records["req-4bf92f3577-9f21"] = decision_record(
        "req-4bf92f3577-9f21",
        outcome="open",
        status=None,
        kept_because="asked",
        attempts=decision_record("x").attempts[1:],
        tpot_seconds=None,
        prompt_tokens=None,
        completion_tokens=None,
    )


async def seen(played: Playing) -> None:
    await played.sees("REQUEST", "4bf9-9f6e")


@pytest.mark.parametrize("size", SIZES)
def test_look(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("5", seen, "down", before=busy)
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_why(snap_compare: Compare, size: tuple[int, int]) -> None:
    async def told(played: Playing) -> None:
        await played.sees("attempt 1", "chosen")

    app, play = scene("5", seen, "down", "enter", told, before=busy)
    assert snap_compare(app, terminal_size=size, run_before=play)


def test_by_model(snap_compare: Compare) -> None:
    app, play = scene("5", seen, "b", before=busy)
    assert snap_compare(app, terminal_size=LARGE, run_before=play)


def test_cancel_dialog(snap_compare: Compare) -> None:
    async def planned(played: Playing) -> None:
        await played.sees("cancels")

    app, play = scene("5", seen, "down", "x", planned, before=busy)
    assert snap_compare(app, terminal_size=SMALL, run_before=play)


def test_nothing_is_open(snap_compare: Compare) -> None:
    app, play = scene("5")
    assert snap_compare(app, terminal_size=SMALL, run_before=play)


def test_old_figures_are_dim_and_say_why(snap_compare: Compare) -> None:
    async def silent(played: Playing) -> None:
        played.control.error = Unreachable("http://127.0.0.1:8082 does not answer in time", hint=None)
        await played.tick(5.0)
        await played.sees("does not answer in time")

    app, play = scene("5", seen, silent, before=busy)
    assert snap_compare(app, terminal_size=SMALL, run_before=play)


async def test_why_this_request_is_two_keys_away() -> None:
    async with on_stage() as played:
        busy(played.control)
        await played.press("5")
        await seen(played)
        await played.press("enter")
        await played.sees("why req-4bf92f3577-9f21", "○ open", "▶ r2")
        asked = played.control.calls.count(("request", "req-4bf92f3577-9f21"))
        screen = played.app.screen
        assert isinstance(screen, WhyScreen)
        screen.tick()
        await played.until(lambda: played.control.calls.count(("request", "req-4bf92f3577-9f21")) == asked + 1)
        played.control.records["req-4bf92f3577-9f21"] = decision_record("req-4bf92f3577-9f21")
        screen.tick()
        await played.sees("ok 200")
        calls = len(played.control.calls)
        screen.tick()  # it has ended: nothing more to ask
        await played.settle()
        assert len(played.control.calls) == calls
        await played.press("x")  # nor to cancel
        assert isinstance(played.app.screen, WhyScreen)
        await played.press("escape")
        assert isinstance(played.app.base.view, RequestsView)


async def test_cancel_asks_first_and_tells_what_was_done() -> None:
    async with on_stage() as played:
        busy(played.control)
        await played.press("5")
        await seen(played)
        await played.press("down", "x")
        assert isinstance(played.app.screen, PlanDialog)
        await played.sees(f"cancel {SECOND}", "open for 17.2 s")
        assert played.control.calls[-1] == ("cancel", SECOND, None, True)
        await played.press("enter")
        await played.until(lambda: not isinstance(played.app.screen, PlanDialog))
        assert played.control.calls[-1] == ("cancel", SECOND, None, False)
        await played.sees("cancelled req-")
        await played.press("enter", "x")  # the same from the pane
        await played.until(lambda: isinstance(played.app.screen, (PlanDialog, WhyScreen)))


async def test_from_the_pane_an_open_request_can_be_cancelled_and_its_log_read() -> None:
    async with on_stage() as played:
        busy(played.control)
        await played.press("5")
        await seen(played)
        await played.press("enter")
        await played.sees("○ open")
        await played.press("x")
        await played.until(lambda: isinstance(played.app.screen, PlanDialog))
        await played.press("escape", "enter")
        await played.sees("○ open")
        await played.press("l")
        await played.sees("[6 Logs]", "source: llama-3.3-70b/r2")


async def test_a_viewer_cannot_cancel() -> None:
    async with on_stage(role="viewer") as played:
        busy(played.control)
        await played.press("5")
        await seen(played)
        assert "cancel" not in played.text()
        await played.press("x")
        assert not isinstance(played.app.screen, PlanDialog)
        await played.press("enter")
        await played.sees("○ open")
        await played.press("x")
        assert isinstance(played.app.screen, WhyScreen)


async def test_lists_are_sorted_filtered_grouped_and_narrowed_to_faults() -> None:
    async with on_stage() as played:
        busy(played.control)
        await played.press("5")
        await seen(played)
        view = played.view(RequestsView)
        assert view.table.total_count == 32
        await played.press("z")
        await played.sees("faults only")
        faulty = view.table.total_count
        assert 0 < faulty < 32
        await played.press("z", "slash")
        await played.spell("key=batch")
        await played.press("enter")
        assert 0 < view.table.shown_count < 32
        await played.press("escape")
        assert view.table.shown_count == 32
        await played.press("b")
        await played.sees("requests by model", "NAME", "STREAMING")
        await played.press("enter")
        await played.sees("/model=")
        rows = [row for row in played.lines() if "4bf9-" in row and "·" not in row]
        assert rows
        assert all("deepseek-v3.2" in row for row in rows)
        await played.press("escape", "b", "b")
        await played.sees("requests by key", "batch")
        await played.press("b")
        await played.sees("requests by replica", "IN FLIGHT")
        await played.press("enter")
        await played.sees("[4 Engine]")
        await played.press("5", "b")
        await played.sees("requests by proxy", "CONNECTIONS")
        await played.press("escape")
        await played.sees("requests · live")


async def test_from_an_engine_its_requests_are_one_key_away() -> None:
    async with on_stage() as played:
        busy(played.control)
        await played.press("4")
        await played.sees("deepseek-v3.2 › r2")
        await played.press("R")
        await played.sees("[5 Requests]", "/model=deepseek-v3.2 replica=r2")
        shown = played.view(RequestsView).table.shown_ids
        assert shown
        replicas = {one.id: one.replica for one in played.control.page.items}
        assert {replicas[name] for name in shown} == {"deepseek-v3.2-r2"}


async def test_what_is_missing_is_said() -> None:
    async with on_stage() as played:
        played.control.page = requests_page()
        await played.press("5")
        await played.sees("the oldest 26 are listed; 1,188 more are open")
        played.control.page = RequestsPage(silent=("proxy-9",))
        played.app.base.refresh_view()
        await played.sees("no answer from proxy-9")
        played.control.error = Unreachable("http://127.0.0.1:8082 does not answer in time", hint=None)
        played.app.base.refresh_view()
        await played.sees("does not answer in time")
        played.control.error = None
        await played.press("W")
        await played.sees("no request here")
        await played.press("colon")
        await played.spell("why nope")
        await played.press("enter")
        await played.sees("left no record")


async def test_from_the_chat_and_from_a_line_of_a_log_it_is_one_key() -> None:
    async with on_stage() as played:
        busy(played.control)
        played.control.records["req-chat-1"] = decision_record("req-chat-1")
        played.chat.request_id = "req-chat-1"
        await played.press("7")
        await played.spell("hello")
        await played.press("enter")
        await played.sees("F2")
        await played.press("f2")
        await played.sees("why req-chat-1", "ok 200")
        await played.press("escape")

        replica = "llama-3.3-70b-r1"
        played.control.lines[replica] = [
            LogLine(at=WALL, source=replica, text=f"INFO Added request chatcmpl-{SECOND}-0: prompt 12 tokens")
        ]
        await played.press("escape")
        await played.press("6")
        played.app.base.view.show_thing(Selection("replica", replica))
        await flowed(played)
        await played.sees("Added request")
        await played.press("k")
        await played.press("W")
        await played.sees(f"why {SECOND}")
