"""Text of others never reaches the terminal as anything but text: names, logs, events, answers, errors."""

import pytest

from nebula_core.records.event import Event
from nebula_core.records.views import LogLine, WatchSnapshot
from nebula_core.security.text import is_clean
from nebula_tui.adapters.control import Lost, Refused, Unreachable
from nebula_tui.presenters.chat import Progress
from nebula_tui.screens.chat import ChatView
from nebula_tui.screens.logs import LogsView
from tests.support.fleet import (
    WALL,
    cluster,
    decision_record,
    deployment,
    gpu,
    node,
    replica,
    requests_page,
    sample,
)
from tests.tui.screens.stage import SIZES, Playing, on_stage

PAYLOADS = (
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "\u202egnp.exe",
    "[bold red]markup[/]",
    "[@click=app.quit]x[/]",
    "a\r\nb\tc\x00",
    "\x1bP$q\x1b\\",
)
EVIL = "".join(PAYLOADS)


def hostile() -> WatchSnapshot:
    own = replica(
        "demo",
        1,
        "node-a",
        sample=sample(0.5, 3, 0, 100.0, 0.1),
        phase_reason=EVIL,
        failure_log=(EVIL,),
        ejected={EVIL: EVIL},
    )
    return WatchSnapshot(
        cluster=cluster(brake=EVIL),
        nodes=(
            node(
                "node-a",
                [gpu("node-a", 0, replica="demo-r1", fault=EVIL)],
                hostname=EVIL,
                labels={EVIL: EVIL},
                driver_version=EVIL,
                problems=({"code": EVIL, "message": EVIL, "hint": EVIL},),
            ),
        ),
        deployments=(deployment("demo", 0, 1, status=EVIL, reasons=(EVIL,), updated_by=EVIL),),
        replicas=(own.model_copy(update={"engine": EVIL, "engine_version": EVIL}),),
        events=(Event(id="1-0", at=WALL, kind=EVIL, object=f"node/{EVIL}", message=EVIL, actor=EVIL, result=EVIL),),
    )


def harmless(played: Playing) -> None:
    for line in played.lines():
        assert is_clean(line), repr(line)
    assert "markup" in played.text() or "gnp.exe" in played.text() or "31m" not in played.text()


@pytest.mark.parametrize("size", SIZES)
async def test_on_every_screen(size: tuple[int, int]) -> None:
    async with on_stage(hostile(), size=size) as played:
        for name in ("overview", "nodes", "models", "engine", "requests", "logs", "chat", "events"):
            view = await played.app.base.show(name)
            await played.settle()
            harmless(played)
            if name in ("nodes", "models"):
                await played.press("down", "enter")
                harmless(played)
            assert view.is_mounted
        await played.press("escape", "question_mark")
        harmless(played)


async def test_log_lines() -> None:
    async with on_stage(hostile()) as played:
        played.control.lines["demo-r1"] = [
            LogLine(at=WALL + at, source=EVIL, text=text) for at, text in enumerate(PAYLOADS)
        ]
        await played.app.base.show("logs")
        view = played.view(LogsView)
        view.follow(("demo-r1",))
        await played.until(lambda: len(view._merger) == len(PAYLOADS))
        played.clock.go(1.0)
        view.flush()
        view.ring.drain()
        await played.sees("[bold red]markup[/]", "gnp.exe")
        harmless(played)


async def test_answers_and_their_errors() -> None:
    pieces = [letter for payload in PAYLOADS for letter in payload] + ["[link](javascript:x)"]
    async with on_stage(hostile(), pieces=pieces) as played:
        await played.press("7")
        view = played.view(ChatView)
        view.prompt.text = EVIL
        await played.press("enter")
        await played.until(lambda: view.panes[0].state.progress is Progress.DONE)
        await played.settle()
        harmless(played)
        assert is_clean(view.panes[0].state.text.replace("\n", " ").replace("\t", " "))
        played.chat.error = Refused(EVIL, hint=EVIL)
        view.prompt.text = "again"
        await played.press("enter")
        await played.until(lambda: view.panes[0].state.progress is Progress.FAILED)
        await played.settle()
        harmless(played)


async def test_errors_of_the_server() -> None:
    async with on_stage(hostile()) as played:
        played.app.take(Lost(Unreachable(EVIL, hint=EVIL), 1.0))
        await played.sees("NOT CONNECTED")
        harmless(played)
        played.app.base.tell(EVIL)
        await played.settle()
        harmless(played)


async def test_requests_and_why() -> None:
    page = requests_page()
    rows = [
        one.model_copy(update={"model": EVIL, "key_name": EVIL, "client": EVIL, "proxy": EVIL}) for one in page.items
    ]
    async with on_stage(hostile()) as played:
        played.control.page = page.model_copy(update={"items": tuple(rows), "silent": (EVIL,)})
        found = decision_record(
            rows[0].id, model=EVIL, key_name=EVIL, outcome=EVIL, status=502, detail=EVIL, proxy=EVIL
        )
        attempt = found.attempts[0].model_copy(update={"detail": EVIL, "guard": EVIL, "strategy": EVIL})
        played.control.records[rows[0].id] = found.model_copy(update={"attempts": (attempt,)})
        await played.press("5")
        await played.sees("4bf9-9f21")
        harmless(played)
        await played.press("enter")
        await played.sees("attempt 1")
        harmless(played)
        await played.press("escape", "b")
        harmless(played)


async def test_plans() -> None:
    async with on_stage(hostile()) as played:
        played.control.error = Refused(EVIL, hint=EVIL)
        await played.press("3", "s")
        await played.sees("refused")
        harmless(played)
