"""Screen 7: asking, streaming, stopping, comparing, and what goes wrong."""

import asyncio
from collections.abc import Callable

import pytest
from textual.widgets import Markdown

from nebula_core.errors import NebulaError
from nebula_tui.adapters.control import Refused
from nebula_tui.presenters.chat import Progress
from nebula_tui.screens.chat import ChatView
from nebula_tui.screens.pick import PickDialog
from tests.support.fleet import small_fleet
from tests.tui.screens.stage import SIZES, Playing, on_stage, scene

Compare = Callable[..., bool]

ANSWER = (
    "## Why TTFT rises\n\n",
    "When the KV cache is above ~95% the scheduler *preempts* ",
    "running requests and recomputes them, ",
    "so new prompts wait longer for the first token.\n\n",
    "```python\ndef admit(kv, wait):\n",
    "    return kv < 0.95 and wait < 8\n```\n\n",
    "1. add a replica, or\n",
    "2. lower `max-num-seqs`, or\n",
    "3. spill by prefix\n",
)
QUESTION = "why does TTFT rise above 95%"


async def answered(played: Playing) -> None:
    await ask(played, QUESTION)
    await finished(played)
    assert all(pane.state.progress is Progress.DONE for pane in played.view(ChatView).panes)
    assert len(played.view(ChatView).query(Markdown)) == len(played.view(ChatView).panes)
    played.view(ChatView).refresh_data()


async def finished(played: Playing) -> None:
    """Every pane has its answer as it stays: as markdown, which is read in a thread."""
    workers = [pane._worker for pane in played.view(ChatView).panes]
    await played.until(lambda: all(worker is not None and worker.is_finished for worker in workers))


async def ask(played: Playing, text: str) -> None:
    played.view(ChatView).prompt.text = text
    await played.press("enter")


async def three(played: Playing) -> None:
    played.view(ChatView).set_targets("deepseek-v3.2", tuple(f"deepseek-v3.2-r{place}" for place in (1, 2, 3)))
    await played.settle()


@pytest.mark.parametrize("size", SIZES)
def test_look(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("7", answered, fleet="small", pieces=ANSWER)
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_three_replicas(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("7", three, answered, pieces=ANSWER)
    assert snap_compare(app, terminal_size=size, run_before=play)


@pytest.mark.parametrize("size", SIZES)
def test_pick_dialog(snap_compare: Compare, size: tuple[int, int]) -> None:
    app, play = scene("7", "ctrl+g")
    assert snap_compare(app, terminal_size=size, run_before=play)


async def test_an_answer_streams_and_shows_its_figures() -> None:
    async with on_stage(small_fleet(), pieces=ANSWER) as played:
        played.chat.gate = asyncio.Event()
        await played.press("7")
        await ask(played, QUESTION)
        # The first piece is seen while the rest has not come yet.
        await played.sees("## Why TTFT rises", "TTFT 210ms", "demo → r1 · sim-a")
        played.chat.gate.set()
        await finished(played)
        assert played.view(ChatView).query(Markdown)
        await played.sees("Why TTFT rises", "tok/s", "9 tok", "in 12")
        assert "##" not in played.text()


async def test_the_conversation_goes_on() -> None:
    async with on_stage(small_fleet(), pieces=("yes",)) as played:
        await played.press("7")
        await ask(played, "one")
        await played.until(lambda: played.view(ChatView).panes[0].state.progress is Progress.DONE)
        await ask(played, "two")
        await played.until(lambda: len(played.chat.requests) == 2)
        assert [(turn.role, turn.text) for turn in played.chat.requests[1].turns] == [
            ("user", "one"),
            ("assistant", "yes"),
            ("user", "two"),
        ]
        await played.press("ctrl+n")
        await ask(played, "three")
        await played.until(lambda: len(played.chat.requests) == 3)
        assert [turn.text for turn in played.chat.requests[2].turns] == ["three"]


async def test_t_on_a_replica_pins_it() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("3", "down", "down", "t")
        await ask(played, "hello")
        await played.until(lambda: played.chat.requests)
        assert played.chat.requests[0].replica == "demo-r2"
        await played.sees("r2 · sim-b")


async def test_escape_stops_the_answer_and_keeps_what_came() -> None:
    async with on_stage(small_fleet(), pieces=("first part ", "never seen")) as played:
        played.chat.gate = asyncio.Event()
        await played.press("7")
        await ask(played, QUESTION)
        await played.sees("first part")
        await played.press("escape")
        pane = played.view(ChatView).panes[0]
        await played.until(lambda: pane.state.progress is Progress.STOPPED)
        await played.sees("stopped", "first part")
        assert pane.turns[-1].text == "first part "
        # The next escape leaves the prompt: digits are keys again.
        await played.press("escape", "1")
        await played.sees("[1 Overview]")


async def test_an_answer_stopped_before_it_began_is_not_waited_for() -> None:
    async with on_stage(small_fleet(), pieces=("yes",)) as played:
        await played.press("7")
        pane, door = played.view(ChatView).panes[0], await played.app.open_chat()
        pane.ask("one", door)
        pane.stop()  # in the same turn: its worker has not run yet
        assert pane.state.progress is Progress.STOPPED
        pane.ask("two", door)
        pane.ask("three", door)
        await finished(played)
        assert [[turn.text for turn in request.turns] for request in played.chat.requests] == [["three"]]


async def test_a_question_asked_while_an_answer_comes_is_the_next_one() -> None:
    async with on_stage(small_fleet(), pieces=("half ", "of it")) as played:
        played.chat.gate = asyncio.Event()
        await played.press("7")
        await ask(played, "one")
        await played.sees("half")
        await ask(played, "two")
        played.chat.gate.set()
        await finished(played)
        pane = played.view(ChatView).panes[0]
        assert [turn.text for turn in pane.turns] == ["one", "half ", "two", "half of it"]
        assert [turn.text for turn in played.chat.requests[1].turns] == ["one", "half ", "two"]


async def test_an_error_in_the_middle_is_told_with_its_next_step() -> None:
    async with on_stage(small_fleet()) as played:
        played.chat.error = Refused("the engine died", hint="ask again, another replica answers")
        await played.press("7")
        await ask(played, QUESTION)
        await played.sees("the engine died", "ask again, another replica answers", "failed")


async def test_nobody_knows_the_data_plane() -> None:
    async with on_stage(small_fleet()) as played:
        played.app._chat = None
        played.control.base_url = None
        await played.press("7")
        await ask(played, QUESTION)
        await played.sees("nobody knows the address")


async def test_marked_replicas_are_asked_side_by_side() -> None:
    async with on_stage() as played:
        await played.press("7", "ctrl+g")
        assert isinstance(played.app.screen, PickDialog)
        await played.press("down", "down", "down", "down", "space", "space", "enter")
        await ask(played, "hello")
        await played.until(lambda: len(played.chat.requests) == 2)
        assert sorted(request.replica or "" for request in played.chat.requests) == [
            "deepseek-v3.2-r1",
            "deepseek-v3.2-r2",
        ]


async def test_earlier_questions_come_back_with_up() -> None:
    async with on_stage(small_fleet()) as played:
        await played.press("7")
        await ask(played, "one")
        await ask(played, "two")
        await played.press("up", "up")
        assert played.view(ChatView).prompt.text == "one"
        await played.press("down")
        assert played.view(ChatView).prompt.text == "two"


def test_errors_of_chat_are_errors_of_ours() -> None:
    assert issubclass(Refused, NebulaError)
