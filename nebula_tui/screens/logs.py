"""Screen 6, logs: what happened. Follows the replicas chosen, merged by the time their lines were written.

Each source has its own stream and its own worker: one that breaks is told in the log and tried again, the others go on.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta, timezone
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.worker import Worker

from nebula_core.errors import NebulaError
from nebula_tui.adapters.control import NotFound
from nebula_tui.adapters.files import save_text
from nebula_tui.messages import Ask, HintsChanged, Selection, Told
from nebula_tui.presenters import logs
from nebula_tui.presenters.loglines import LogEntry, LogFilter, entries_of, gap_entry, make_entry
from nebula_tui.presenters.requests import request_in
from nebula_tui.presenters.states import short_replica
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host, View
from nebula_tui.widgets import BrailleChart, KeyHint, LogRing, Panel

#: Lines of the past asked for when a source is opened.
TAIL = 500
_MOST_SOURCES = 16
_RECENT_SECONDS = 10.0
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)


class LogsView(View):
    NAME: ClassVar[str] = "logs"
    DEFAULT_CSS = """
    LogsView #lg-sources { height: 1; }
    LogsView #lg-status { height: 1; }
    LogsView #lg-panel { padding: 0 1; }
    LogsView #lg-rate { height: 6; }
    LogsView.-compact #lg-rate { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ampersand", "ask('&')", "only lines with", show=False, id="logs.include"),
        Binding("minus", "ask('-')", "without lines with", show=False, id="logs.exclude"),
        Binding("ctrl+s", "save", "save", show=False, id="logs.save"),
    ]

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.sources: tuple[str, ...] = ()
        self._workers: dict[str, Worker[None]] = {}
        self._broken: set[str] = set()
        self._merger = logs.Merger()
        self._rates = logs.Rates()
        self._flush_due = False

    def compose(self) -> ComposeResult:
        yield Lines(id="lg-sources")
        yield Lines(id="lg-status")
        with Panel(id="lg-panel"):
            yield LogRing(
                id="lg-ring", empty_text="No line yet.", tz=timezone(timedelta(seconds=self.fleet.utc_offset_seconds))
            )
        with Panel(id="lg-rate", title="lines/s · 4 min"):
            yield BrailleChart(id="lg-rates", minimum_top=1.0, caption=" ")

    def each_second(self) -> None:
        self._rates.tick()

    @property
    def ring(self) -> LogRing:
        return self.query_one("#lg-ring", LogRing)

    def first_focus(self) -> Widget | None:
        return self.ring

    # ------------------------------------------------------------------------------------------------------ sources

    def show_thing(self, selection: Selection) -> None:
        """Follows the replicas of what was chosen, and nothing else."""
        found = tuple(replica.id for replica in selection.replicas(self.fleet)[:_MOST_SOURCES])
        if found:
            self.follow(found)

    def follow(self, replicas: tuple[str, ...]) -> None:
        if replicas == self.sources:
            return
        for gone in set(self._workers) - set(replicas):
            self._workers.pop(gone).cancel()
        if not set(replicas) & set(self.sources):
            self.ring.clear()
            self._merger = logs.Merger()
        self.sources = replicas
        self._broken &= set(replicas)
        for replica in replicas:
            if replica not in self._workers:
                self._workers[replica] = self.run_worker(
                    partial(self._read, replica), group=f"log-{replica}", name=f"log {replica}", exit_on_error=False
                )
        self.refresh_data()
        self.post_message(HintsChanged())

    async def _read(self, replica: str) -> None:
        """Follows one source for as long as it is wanted."""
        name = short_replica(replica)
        tail, failures = TAIL, 0
        while True:
            try:
                async for line in self.host.control.logs(replica, tail=tail, follow=True):
                    if replica in self._broken:
                        self._broken.discard(replica)
                    failures = 0
                    self._add(entries_of(line.model_copy(update={"source": name})))
                why = "the server ended the stream"
            except NotFound as error:
                self._add((make_entry(self.host.wall(), name, f"WARN {error}"),))
                self._broken.add(replica)
                return
            except NebulaError as error:
                why = str(error)
            if replica not in self._broken:
                self._broken.add(replica)
                # Lines written until the stream is back may be missing: the log says so itself.
                self._add((gap_entry(self.host.wall(), 1, f"or more of {name} may be missing: {why}"),))
            # What came before is here already; only what follows is asked for.
            tail = 0
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1

    def _add(self, entries: Sequence[LogEntry]) -> None:
        self._merger.add(entries, self.host.now())
        # What was written before we looked is no rate of now.
        recent = self.host.wall() - _RECENT_SECONDS
        self._rates.count(entry for entry in entries if entry.at >= recent)
        if not self._flush_due:
            self._flush_due = True
            self.set_timer(self._merger.hold_seconds / 2, self.flush)

    def flush(self) -> None:
        """Gives the ring what has been held long enough."""
        self._flush_due = False
        ready = self._merger.take(self.host.now())
        if ready:
            self.ring.append(ready)
        if len(self._merger):
            self._flush_due = True
            self.set_timer(self._merger.hold_seconds / 2, self.flush)

    # -------------------------------------------------------------------------------------------------------- shown

    def refresh_data(self) -> None:
        self.set_class(self.compact, "-compact")
        self.query_one("#lg-sources", Lines).set_lines(
            [logs.source_line(self.sources, sorted(self._broken), self._rates)]
        )
        self._status()
        total = tuple(float(number) for number in self._rates.total)
        errors = sum(list(self._rates.errors)[-120:])
        self.query_one("#lg-rates", BrailleChart).set_values(
            total, caption=f"{errors} errors in the last 2 min · newest at the right"
        )

    def _status(self) -> None:
        status = self.ring.status
        self.query_one("#lg-status", Lines).set_lines(
            [
                logs.status_line(
                    search=self.ring.search_text,
                    hits=status.hits,
                    hit=status.hit,
                    scanning=status.scanning,
                    filter=self.ring.filter,
                    kept=status.kept,
                    capacity=status.capacity,
                    lost=status.lost,
                    following=status.following,
                )
            ]
        )

    def on_log_ring_status_changed(self) -> None:
        self._status()

    @property
    def selection(self) -> Selection | None:
        return Selection("replica", self.sources[0]) if self.sources else None

    def can_filter(self) -> bool:
        return True

    @property
    def filter_text(self) -> str:
        return self.ring.search_text

    def set_filter(self, text: str) -> None:
        """In a log, `/` searches; `&` and `-` filter."""
        self.ring.set_search(text)
        self._status()

    def narrow(self, mode: str, text: str) -> None:
        """`&` shows only lines with it, `-` leaves lines with it out; empty takes all such filters away."""
        now = self.ring.filter
        if mode == "&":
            include = (*now.include, text) if text else ()
            self.ring.set_filter(LogFilter(now.level, include, now.exclude, now.muted))
        else:
            exclude = (*now.exclude, text) if text else ()
            self.ring.set_filter(LogFilter(now.level, now.include, exclude, now.muted))
        self._status()

    def action_ask(self, mode: str) -> None:
        self.post_message(Ask(mode))

    async def action_save(self) -> None:
        """Writes what is shown to a file of the state folder."""
        lines = [f"{entry.at:.3f} {entry.source} {entry.text}" for entry in self.ring.shown_entries()]
        try:
            path = await asyncio.to_thread(save_text, "logs", "\n".join(lines) + "\n", self.host.wall())
        except OSError as error:
            self.post_message(Told(f"not saved: {error.strerror}; is the folder writable?", "crit"))
        else:
            self.post_message(Told(f"{len(lines):,} lines saved to {path}"))

    def back(self) -> bool:
        if self.ring.search_text:
            self.ring.set_search("")
        elif self.ring.filter:
            self.ring.set_filter(LogFilter())
        else:
            return False
        self._status()
        return True

    @property
    def request(self) -> str | None:
        """The one that the line under the cursor names."""
        entry = self.ring.cursor_entry
        return None if entry is None else request_in(entry.text)

    def copy_text(self) -> str | None:
        entry = self.ring.cursor_entry
        return entry.text if entry is not None else None

    def hints(self) -> list[KeyHint]:
        return [
            KeyHint("f", "follow", "f", 0),
            KeyHint("/", "search", "slash", 0),
            KeyHint("n", "", "n", 1),
            KeyHint("N", "next", "N", 1),
            KeyHint("&", "only", "ampersand", 1),
            KeyHint("-", "without", "minus", 1),
            KeyHint("L", "level", "L", 2),
            KeyHint("t", "time", "t", 3),
            KeyHint("w", "wrap", "w", 2),
            *([KeyHint("W", "why", "W", 1)] if self.request is not None else []),
            KeyHint("^S", "save", "ctrl+s", 3),
            KeyHint("y", "copy line", "y", 4),
            KeyHint("?", "help", "question_mark", 0),
        ]
