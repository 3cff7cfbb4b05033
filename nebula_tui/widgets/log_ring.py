"""The log pane: 100,000 lines, followed or read, searched and filtered while they pour in.

Theory. Lines wait in a bounded queue and are taken over in batches, about ten times a second, and only while the pane
is seen; an idle pane has no timer. The view is a list of line numbers (all lines, or those a filter passes) and an
anchor: while following, the last line is at the bottom; while reading, the line at the top stays, whatever comes.
Searching and filtering old lines runs in slices of a few milliseconds between the keys. What is missing is told in the
log itself, by a gap line, and counted in `lost`.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from typing import ClassVar, Final, Literal

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.loglines import (
    Level,
    LogEntry,
    LogFilter,
    compile_search,
    gap_entry,
)
from nebula_tui.widgets.logdraw import Piece, cut, styled_text, wrap
from nebula_tui.widgets.logstore import LogStore, Scan, Whole, drop_oldest
from nebula_tui.widgets.painted import Line, Painted, fit, text_width

TimeMode = Literal["ms", "s", "delta", "off"]
_TIME_MODES: Final[tuple[TimeMode, ...]] = ("ms", "s", "delta", "off")
_DRAIN_SECONDS: Final = 0.1
_SLICE_SECONDS: Final = 0.008
_SLICE_LINES: Final = 500
_WHEEL_LINES: Final = 3
_SIDE_STEP: Final = 16
_SOURCE_WIDTH: Final = 16


@dataclass(frozen=True, slots=True)
class LogStatus:
    """What a status line tells of the pane."""

    kept: int
    capacity: int
    shown: int
    lost: int
    hits: int
    hit: int | None
    """Which hit the cursor is on, from 1."""
    following: bool
    scanning: bool


@dataclass(frozen=True, slots=True)
class _Shown:
    """One line of the screen: a log line, and which of its wrapped parts."""

    number: int
    part: int
    pieces: tuple[Piece, ...]
    cursor: bool


class LogRing(Painted, can_focus=True):
    """API: `append`, `note_lost`, `set_search`, `set_filter`, `follow`, `status`, `shown_entries`; messages below."""

    DEFAULT_CSS = """
    LogRing { height: 1fr; width: 1fr; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "down", show=False, id="log.down"),
        Binding("k,up", "move(-1)", "up", show=False, id="log.up"),
        Binding("g,home", "top", "oldest", show=False, id="log.top"),
        Binding("G,end", "bottom", "newest, and follow", show=False, id="log.bottom"),
        Binding("ctrl+d", "page(0.5)", "half a page down", show=False, id="log.half_down"),
        Binding("ctrl+u", "page(-0.5)", "half a page up", show=False, id="log.half_up"),
        Binding("pagedown,ctrl+f", "page(1.0)", "page down", show=False, id="log.page_down"),
        Binding("pageup,ctrl+b", "page(-1.0)", "page up", show=False, id="log.page_up"),
        Binding("f", "follow", "follow", show=False, id="log.follow"),
        Binding("n", "hit(1)", "next hit", show=False, id="log.next_hit"),
        Binding("N", "hit(-1)", "previous hit", show=False, id="log.previous_hit"),
        Binding("w", "wrap", "wrap", show=False, id="log.wrap"),
        Binding("t", "time_mode", "time format", show=False, id="log.time"),
        Binding("L", "level", "least level", show=False, id="log.level"),
        Binding("right", "side(1)", "scroll right", show=False, id="log.right"),
        Binding("left", "side(-1)", "scroll left", show=False, id="log.left"),
        Binding("enter", "select", "open line", show=False, id="log.open"),
    ]

    class LogMessage(Message):
        """What all messages of a log pane carry."""

        def __init__(self, log: "LogRing") -> None:
            super().__init__()
            self.log_ring = log

        @property
        def control(self) -> "LogRing":
            return self.log_ring

    class StatusChanged(LogMessage):
        """Look at `status` again."""

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, LogRing.StatusChanged)

    class LineSelected(LogMessage):
        """Enter, or a second click, on a line."""

        def __init__(self, log: "LogRing", entry: LogEntry) -> None:
            super().__init__(log)
            self.entry = entry

    def __init__(
        self,
        *,
        capacity: int = 100_000,
        tz: tzinfo | None = None,
        show_source: bool = True,
        empty_text: str = "No line yet.",
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - Textual's name
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.empty_text = empty_text
        self.following = True
        self.wrap = False
        self.time_mode: TimeMode = "ms"
        self.lost = 0
        self._tz = tz
        self._show_source = show_source
        self._store = LogStore(capacity)
        self._view: Scan | Whole = Whole(self._store)
        self._filter = LogFilter()
        self._search_text = ""
        self._pattern = compile_search("")
        self._hits: Scan | None = None
        self._pending: deque[LogEntry] = deque()
        self._pending_lost = 0
        self._seen = True
        self._drain_due = False
        self._work_due = False
        self._top: tuple[int, int] = (0, 0)
        self._cursor: int | None = None
        self._side = 0
        self._source_width = 0
        self._lines: list[_Shown] = []

    # ------------------------------------------------------------------------------------------------------------ data

    def append(self, entries: Iterable[LogEntry]) -> None:
        """Queues clean lines (see `presenters.loglines`), oldest first; cheap, and safe while hidden."""
        # One line less than the ring holds, so that the gap line itself has room in it.
        self._pending_lost += drop_oldest(self._pending, entries, self._store.capacity - 1)
        self._schedule_drain()

    def note_lost(self, count: int, at: float, reason: str = "were lost on the way") -> None:
        """Marks lines that never arrived, where they are missing."""
        self.append((gap_entry(at, count, reason),))

    def clear(self) -> None:
        self._pending.clear()
        self._store.clear()
        self.lost = self._pending_lost = 0
        self._cursor = None
        self.following = True
        self._rebuild_view()

    def _schedule_drain(self) -> None:
        if not self._drain_due and self._seen and self.is_mounted and (self._pending or self._pending_lost):
            self._drain_due = True
            self.set_timer(_DRAIN_SECONDS, self.drain)

    def drain(self) -> None:
        """Takes over what waits. Called by the timer; a test may call it."""
        self._drain_due = False
        if not self._pending and not self._pending_lost:
            return
        batch = list(self._pending)
        self._pending.clear()
        if self._pending_lost:
            at = batch[0].at if batch else 0.0
            batch.insert(0, gap_entry(at, self._pending_lost, "came faster than this pane keeps"))
            self._pending_lost = 0
        self.lost += sum(entry.gap for entry in batch)
        if self._show_source:
            widest = max(len(source) for source in {entry.source for entry in batch})
            self._source_width = max(self._source_width, min(widest, _SOURCE_WIDTH))
        self._store.append(batch)
        self._view.catch_up()
        if self._hits is not None:
            self._hits.catch_up()
        self._repaint()
        self.post_message(self.StatusChanged(self))

    @property
    def status(self) -> LogStatus:
        hit = None
        if self._hits is not None and self._cursor is not None and self._cursor in self._hits:
            hit = self._hits.place(self._cursor) + 1
        return LogStatus(
            kept=len(self._store),
            capacity=self._store.capacity,
            shown=len(self._view),
            lost=self.lost,
            hits=0 if self._hits is None else len(self._hits),
            hit=hit,
            following=self.following,
            scanning=not self._view.done or (self._hits is not None and not self._hits.done),
        )

    @property
    def filter(self) -> LogFilter:
        return self._filter

    @property
    def search_text(self) -> str:
        return self._search_text

    @property
    def cursor_entry(self) -> LogEntry | None:
        """The line under the cursor; None while following."""
        if self._cursor is None or not self._store.first <= self._cursor < self._store.end:
            return None
        return self._store[self._cursor]

    def shown_entries(self) -> Iterator[LogEntry]:
        """All lines the filter passes, oldest first: for an export."""
        for place in range(len(self._view)):
            yield self._store[self._view[place]]

    # ----------------------------------------------------------------------------------------------- search and filter

    def set_search(self, text: str) -> None:
        """Marks hits «so» and counts them; n and N walk them. "" ends the search."""
        if text == self._search_text:
            return
        self._search_text = text
        self._pattern = compile_search(text)
        self._start_search()
        self._repaint_all()

    def set_filter(self, new: LogFilter) -> None:
        if new != self._filter:
            self._filter = new
            self._rebuild_view()

    def _rebuild_view(self) -> None:
        self._view = Scan(self._store, self._filter.passes) if self._filter else Whole(self._store)
        self._start_search()
        self._repaint_all()
        self._work()

    def _start_search(self) -> None:
        if self._pattern is None:
            self._hits = None
        else:
            search, passes = self._pattern.search, self._filter.passes
            self._hits = Scan(self._store, lambda entry: search(entry.text) is not None and passes(entry))
        self._schedule_work()
        self.post_message(self.StatusChanged(self))

    def _schedule_work(self) -> None:
        if not self._work_due and self.is_mounted and self.status.scanning:
            self._work_due = True
            self.set_timer(0.001, self._work)

    def _work(self) -> None:
        """One slice of looking through old lines."""
        self._work_due = False
        until = time.monotonic() + _SLICE_SECONDS
        for scan in (self._view, self._hits):
            while scan is not None and not scan.done and time.monotonic() < until:
                scan.step(_SLICE_LINES)
        self._repaint()
        self._schedule_work()
        self.post_message(self.StatusChanged(self))

    # ----------------------------------------------------------------------------------------------------------- moves

    @property
    def _height(self) -> int:
        return max(1, self.size.height)

    def follow(self, following: bool = True) -> None:
        """Keeps the newest line in sight, or stays where it is."""
        if following == self.following:
            return
        if following:
            self._cursor = None
        elif self._lines:
            self._top = (self._lines[0].number, self._lines[0].part)
            self._cursor = self._lines[-1].number
        self.following = following
        self._repaint()
        self.post_message(self.StatusChanged(self))

    def action_follow(self) -> None:
        self.follow(not self.following)

    def action_move(self, by: int) -> None:
        if not len(self._view):
            return
        if self.following:
            if by > 0:
                return
            self.follow(False)
        place = self._view.place(self._cursor or 0) + by
        if place >= len(self._view):
            self.follow()
            return
        self._put_cursor(self._view[max(0, place)])

    def action_page(self, pages: float) -> None:
        self.action_move(int(self._height * pages))

    def action_top(self) -> None:
        if len(self._view):
            self.follow(False)
            self._put_cursor(self._view[0])

    def action_bottom(self) -> None:
        self.follow()

    def action_hit(self, by: int) -> None:
        """The next hit after the cursor; from the newest line backwards while following."""
        if self._hits is None or not len(self._hits):
            return
        at = self._store.end if self._cursor is None else self._cursor
        number = self._hits.after(at) if by > 0 else self._hits.before(at)
        if number is None:
            # Past the last: round to the other end, as a pager does.
            number = self._hits[0 if by > 0 else len(self._hits) - 1]
        self.follow(False)
        self._put_cursor(number)

    def action_wrap(self) -> None:
        self.wrap = not self.wrap
        self._side = 0
        self._top = (self._top[0], 0)
        self._repaint()

    def action_time_mode(self) -> None:
        self.time_mode = _TIME_MODES[(_TIME_MODES.index(self.time_mode) + 1) % len(_TIME_MODES)]
        self._repaint()

    def action_level(self) -> None:
        """The least level shown: all, INFO, WARN, ERROR, and round again."""
        steps = (Level.TRACE, Level.INFO, Level.WARN, Level.ERROR)
        at = steps.index(self._filter.level) if self._filter.level in steps else 0
        self.set_filter(replace(self._filter, level=steps[(at + 1) % len(steps)]))

    def action_side(self, by: int) -> None:
        if not self.wrap:
            self._side = max(0, self._side + by * _SIDE_STEP)
            self._repaint()

    def action_select(self) -> None:
        entry = self.cursor_entry
        if entry is not None:
            self.post_message(self.LineSelected(self, entry))

    def _put_cursor(self, number: int) -> None:
        self._cursor = number
        shown = [line.number for line in self._lines]
        top_place, place = self._view.place(self._top[0]), self._view.place(number)
        if place <= top_place:
            self._top = (number, 0)
        elif number not in shown or shown[-1] == number:
            # Below the screen, or cut by its end: it becomes the last line.
            rows, at = 0, place + 1
            while at > 0 and rows < self._height:
                at -= 1
                rows += len(self._parts(self._view[at]))
            first = (self._view[at], max(0, rows - self._height))
            self._top = max(self._top, first)
        self._repaint()
        self.post_message(self.StatusChanged(self))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        if not self.following:
            self._scroll(_WHEEL_LINES)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        if len(self._lines) >= self._height or not self.following:
            self.follow(False)
            self._scroll(-_WHEEL_LINES)

    def _scroll(self, by: int) -> None:
        """Moves the top by whole log lines; past the end, follows again."""
        place = max(0, self._view.place(self._top[0]) + by)
        if by > 0 and self._lines and self._lines[-1].number == self._last_number():
            self.follow()
            return
        if place < len(self._view):
            self._top = (self._view[place], 0)
            self._repaint()

    def _last_number(self) -> int | None:
        return self._view[len(self._view) - 1] if len(self._view) else None

    def on_click(self, event: events.Click) -> None:
        where = event.get_content_offset(self)
        if where is None or where.y >= len(self._lines):
            return
        number = self._lines[where.y].number
        self.follow(False)
        self._put_cursor(number)
        if event.chain > 1:
            self.action_select()

    # ----------------------------------------------------------------------------------------------------------- paint

    def on_mount(self) -> None:
        self._schedule_drain()
        self._schedule_work()

    def on_show(self) -> None:
        self._seen = True
        self.drain()

    def on_hide(self) -> None:
        self._seen = False

    def on_resize(self) -> None:
        self._repaint_all()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        if self.is_mounted:
            self._repaint_all()

    def _repaint_all(self) -> None:
        self._lines = []
        self._repaint()
        self.refresh()

    def _repaint(self) -> None:
        """Works out the lines of the screen and refreshes those that differ."""
        if not self.is_mounted or not self.size.width:
            return
        new = self._from_bottom() if self.following else self._from_top()
        old, self._lines = self._lines, new
        if len(old) != len(new):
            self.refresh()
            return
        width = self.size.width
        changed = [Region(0, y, width, 1) for y in range(len(new)) if new[y] != old[y]]
        if changed:
            self.refresh(*changed)

    def _from_bottom(self) -> list[_Shown]:
        lines: list[_Shown] = []
        place = len(self._view)
        while place > 0 and len(lines) < self._height:
            place -= 1
            number = self._view[place]
            parts = self._parts(number)
            lines.extend(_Shown(number, part, parts[part], False) for part in range(len(parts) - 1, -1, -1))
        return lines[: self._height][::-1]

    def _from_top(self) -> list[_Shown]:
        lines: list[_Shown] = []
        place, skip = self._view.place(self._top[0]), self._top[1]
        # The line at the top may have left the ring or the filter; then its parts no longer count.
        if place < len(self._view) and self._view[place] != self._top[0]:
            skip = 0
        while place < len(self._view) and len(lines) < self._height:
            number = self._view[place]
            for part, pieces in enumerate(self._parts(number)):
                if part >= skip and len(lines) < self._height:
                    lines.append(_Shown(number, part, pieces, number == self._cursor))
            place, skip = place + 1, 0
        return lines

    def _parts(self, number: int) -> list[tuple[Piece, ...]]:
        """A log line as the pieces of one or, wrapped, several lines of the screen."""
        entry, palette, width = self._store[number], self.palette, self.size.width - 2
        if entry.gap:
            text = f"┄┄ {self._time(entry.at)}{entry.text} "
            return [((text + "┄" * max(2, width - text_width(text)), palette.warn),)]
        head: list[Piece] = []
        if stamp := self._stamp(number, entry):
            head.append((stamp, palette.dim))
        if self._source_width:
            head.append((fit(entry.source, self._source_width), palette.chart))
            head.append(("▏", palette.border))
        head_width = sum(text_width(text) for text, _ in head)
        room = max(1, width - head_width)
        body = styled_text(entry, self._pattern, palette)
        if not self.wrap:
            return [(*head, *cut(body, self._side, room))]
        wrapped = wrap(body, room)
        blank = (" " * head_width, palette.dim)
        return [(*head, *wrapped[0]), *((blank, *part) for part in wrapped[1:])]

    def _time(self, at: float) -> str:
        return datetime.fromtimestamp(at, self._tz).strftime("%H:%M:%S ") if at else ""

    def _stamp(self, number: int, entry: LogEntry) -> str:
        mode = self.time_mode
        if mode == "off":
            return ""
        if mode == "delta":
            before = self._store[number - 1].at if number > self._store.first else entry.at
            return f"{entry.at - before:+8.3f}s "
        when = datetime.fromtimestamp(entry.at, self._tz)
        if mode == "s":
            return when.strftime("%H:%M:%S ")
        if self.size.width < 100:
            return f"{when:%M:%S}.{when.microsecond // 100_000} "
        return f"{when:%H:%M:%S}.{when.microsecond // 1000:03d} "

    def render_line(self, y: int) -> Strip:
        width, palette, line = self.size.width, self.palette, Line()
        if y >= len(self._lines):
            if not self._lines and y == self._height // 3:
                text = (
                    self.empty_text if not len(self._store) else f"None of {len(self._store):,} lines passes the filter"
                )
                line.pad_to((width - text_width(text)) // 2, palette.dim).add(text, palette.dim)
            return self.ground(line.strip(width))
        shown = self._lines[y]
        entry = self._store[shown.number] if self._store.first <= shown.number < self._store.end else None
        severity = Severity.NORMAL if entry is None or entry.gap or shown.part else entry.level.severity
        if shown.cursor and not shown.part:
            line.add("▶ ", palette.accent)
        else:
            glyph = severity.glyph if severity in (Severity.WARN, Severity.CRIT) else " "
            line.add(f"{glyph} ", palette.of(severity))
        for text, style in shown.pieces:
            line.add(text, style)
        strip = line.strip(width)
        if shown.cursor:
            strip = strip.apply_style(palette.cursor if self.has_focus else palette.cursor_blurred)
        return self.ground(strip)


__all__ = ["LogRing", "LogStatus", "TimeMode"]
