"""The log pane: follows or stays, marks what is searched, filters, and tells what is missing."""

from datetime import UTC

from nebula_tui.presenters.loglines import Level, LogEntry, LogFilter, make_entry
from nebula_tui.widgets import LogRing
from tests.tui.widgets.stage import Acting, on_stage

START = 1_790_346_120.0  # 14:22:00 UTC


def lines(low: int, high: int, text: str = "INFO line {n}", source: str = "chat-1") -> list[LogEntry]:
    return [make_entry(START + n / 10, source, text.format(n=n)) for n in range(low, high)]


def pane(**more) -> LogRing:
    return LogRing(tz=UTC, **more)


async def fed(at: Acting, log: LogRing, entries: list[LogEntry]) -> None:
    log.append(entries)
    log.drain()
    await at.settle()


async def test_lines_come_by_the_timer_in_batches() -> None:
    log = pane()
    async with on_stage(log, size=(60, 6)) as at:
        for n in range(50):
            log.append(lines(n, n + 1))
        assert len(log._store) == 0
        await at.until(lambda: "line 49" in at.text())
        assert log.status.kept == 50
        assert not log._drain_due


async def test_a_line_tells_time_source_and_level() -> None:
    log = pane()
    async with on_stage(log, size=(110, 6)) as at:
        await fed(at, log, [make_entry(START + 6.112, "ds/r2", "WARN  kv full"), make_entry(START + 7, "px", "plain")])
        assert [line.rstrip() for line in at.lines()[:2]] == [
            "● 14:22:06.112 ds/r2▏WARN  kv full",
            "  14:22:07.000 px   ▏plain",
        ]
        log.focus()
        await at.press("t")
        assert at.lines()[0].startswith("● 14:22:06 ds/r2▏")
        await at.press("t")
        assert at.lines()[1].startswith("    +0.888s px   ▏")
        await at.press("t")
        assert at.lines()[1].startswith("  px   ▏plain")


async def test_following_shows_the_newest_and_reading_stays() -> None:
    log = pane(show_source=False)
    async with on_stage(log, size=(60, 5)) as at:
        log.focus()
        await fed(at, log, lines(0, 20))
        assert at.lines()[4].endswith("line 19".ljust(60 - at.lines()[4].index("line")))
        await at.press("k", "k")
        assert not log.following
        assert log.cursor_entry is not None
        assert log.cursor_entry.text == "INFO line 17"
        before = at.lines()
        await fed(at, log, lines(20, 500))
        assert at.lines() == before
        await at.press("G")
        assert log.following
        assert "line 499" in at.lines()[4]
        assert log.cursor_entry is None


async def test_moving_past_the_newest_follows_again() -> None:
    log = pane()
    async with on_stage(log, size=(60, 5)) as at:
        log.focus()
        await fed(at, log, lines(0, 20))
        await at.press("k", "j")
        assert not log.following
        await at.press("j")
        assert log.following
        await at.press("f")
        assert not log.following
        await at.press("f")
        assert log.following


async def test_the_oldest_and_pages() -> None:
    log = pane()
    async with on_stage(log, size=(60, 5)) as at:
        log.focus()
        await fed(at, log, lines(0, 100))
        await at.press("g")
        assert "line 0" in at.lines()[0]
        await at.press("pagedown", "pagedown")
        assert log.cursor_entry is not None
        assert log.cursor_entry.text == "INFO line 10"
        await at.press("ctrl+u")
        assert log.cursor_entry.text == "INFO line 8"


async def test_hits_are_marked_counted_and_walked() -> None:
    log = pane(show_source=False)
    async with on_stage(log, size=(60, 5)) as at:
        log.focus()
        await fed(at, log, lines(0, 3000))
        log.set_search("line [0-9]*00$")
        await at.until(lambda: not log.status.scanning)
        assert log.status.hits == 29
        await at.press("N")
        assert log.cursor_entry is not None
        assert log.cursor_entry.text == "INFO line 2900"
        assert (log.status.hit, log.status.hits) == (29, 29)
        assert "«line 2900»" in at.text()
        await at.press("n")
        assert log.cursor_entry.text == "INFO line 100"
        await fed(at, log, lines(3000, 3101))
        assert log.status.hits == 31
        log.set_search("")
        await at.settle()
        assert "«" not in at.text()
        assert log.status.hits == 0


async def test_filters_apply_to_old_lines_and_new_ones() -> None:
    log = pane(show_source=False)
    async with on_stage(log, size=(60, 6)) as at:
        await fed(
            at, log, [*lines(0, 2000), *lines(2000, 2003, "WARN {n}"), *lines(2003, 4000, "INFO GET /health {n}")]
        )
        log.set_filter(LogFilter(exclude=("GET /health",), include=("200[0-9]", "1999")))
        await at.until(lambda: not log.status.scanning)
        assert [e.text for e in log.shown_entries()] == ["INFO line 1999", "WARN 2000", "WARN 2001", "WARN 2002"]
        await fed(at, log, lines(2004, 2006, "ERROR {n}"))
        assert "ERROR 2005" in at.text()
        log.focus()
        await at.press("L", "L", "L")
        await at.until(lambda: not log.status.scanning)
        assert log.filter.level is Level.ERROR
        assert [e.text for e in log.shown_entries()] == ["ERROR 2004", "ERROR 2005"]
        log.set_filter(LogFilter(level=Level.FATAL))
        await at.until(lambda: not log.status.scanning)
        assert "None of 4,002 lines passes the filter" in at.text()


async def test_a_gap_is_a_line_and_is_counted() -> None:
    log = pane()
    async with on_stage(log, size=(70, 5)) as at:
        log.append(lines(0, 2))
        log.note_lost(1120, START + 4, "sampled out by server")
        await fed(at, log, lines(2, 3))
        assert at.lines()[2].startswith("  ┄┄ 14:22:04 gap: 1,120 lines sampled out by server ┄┄")
        assert log.status.lost == 1120


async def test_what_came_too_fast_while_hidden_is_told() -> None:
    log = pane(capacity=1000)
    async with on_stage(log, size=(70, 5)) as at:
        log.display = False
        await at.settle()
        log.append(lines(0, 1500))
        assert len(log._pending) == 999
        assert not log._drain_due
        log.display = True
        await at.until(lambda: "line 1499" in at.text())
        assert log.status.lost == 501
        assert log.status.kept == 1000
        log.focus()
        await at.press("g")
        assert "gap: 501 lines came faster than this pane keeps" in at.lines()[0]


async def test_the_ring_is_bounded_and_the_reader_keeps_what_is_left() -> None:
    log = pane(capacity=2000)
    async with on_stage(log, size=(60, 5)) as at:
        log.focus()
        await fed(at, log, lines(0, 1500))
        await at.press("g")
        for start in range(1500, 9000, 1500):
            await fed(at, log, lines(start, start + 1500))
        assert log.status.kept <= 2000
        assert "line 7000" in at.lines()[0]
        assert log.cursor_entry is None
        await at.press("j")
        assert not log.following


async def test_long_lines_wrap_or_scroll_sideways() -> None:
    log = pane(show_source=False)
    text = "INFO " + "".join(f"{n:03}." for n in range(60))
    async with on_stage(log, size=(40, 12)) as at:
        log.focus()
        log.time_mode = "off"
        await fed(at, log, [make_entry(START, "s", text), *lines(1, 2)])
        assert at.lines()[0] == "  " + text[:38]
        await at.press("right")
        assert at.lines()[0] == "  " + text[16:54]
        await at.press("left", "w")
        shown = "".join(line[2:] for line in at.lines()[:7]).rstrip()
        assert shown.startswith(text)
        await at.press("k", "k")
        assert at.lines()[0].startswith("▶ INFO 000.")


async def test_wide_characters_never_break_the_line() -> None:
    log = pane(show_source=False)
    async with on_stage(log, size=(21, 8)) as at:
        log.time_mode = "off"
        log.wrap = True
        await fed(at, log, [make_entry(START, "s", "模型" * 15)])
        assert [line.strip() for line in at.lines()[:4]] == [
            "模型模型模型模型模",
            "型模型模型模型模型",
            "模型模型模型模型模",
            "型模型",
        ]


async def test_enter_opens_a_line() -> None:
    log = pane()
    async with on_stage(log, size=(60, 6)) as at:
        log.focus()
        await fed(at, log, lines(0, 10))
        await at.press("enter", "k", "enter")
        await at.pilot.click(log, offset=(20, 0), times=2)
        await at.settle()
        assert [m.entry.text for m in at.app.messages(LogRing.LineSelected)] == ["INFO line 8", "INFO line 4"]


async def test_a_search_over_a_full_ring_leaves_room_for_keys() -> None:
    log = pane()
    async with on_stage(log, size=(60, 6)) as at:
        log.focus()
        log.append(lines(0, 100_000))
        log.drain()
        log.set_search("line 99[0-9]*7$")
        await at.press("k")
        assert not log.following
        await at.until(lambda: not log.status.scanning)
        expected = sum(str(n).startswith("99") and str(n).endswith("7") for n in range(log._store.first, 100_000))
        assert log.status.hits == expected


async def test_clear() -> None:
    log = pane(empty_text="No line since 14:22.")
    async with on_stage(log, size=(60, 6)) as at:
        await fed(at, log, lines(0, 10))
        log.clear()
        await at.settle()
        assert "No line since 14:22." in at.text()
        await fed(at, log, lines(10, 12))
        assert "line 11" in at.text()
        assert log.status.kept == 2
