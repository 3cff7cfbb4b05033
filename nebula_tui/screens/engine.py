"""Screen 4, engine: why is it slow. One engine over ten minutes, by its own figures."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from nebula_core.records.replica import Phase
from nebula_core.records.views import ReplicaView
from nebula_tui.messages import HintsChanged, Selection
from nebula_tui.presenters import engine, models
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.states import short_replica
from nebula_tui.presenters.text import plain
from nebula_tui.screens.parts import Lines
from nebula_tui.screens.view import Host, View
from nebula_tui.widgets import BrailleChart, KeyHint, MeterRow, Panel


class EngineView(View):
    NAME: ClassVar[str] = "engine"
    can_focus = True
    DEFAULT_CSS = """
    EngineView #en-head { height: 1; }
    EngineView #en-charts { height: 1fr; }
    EngineView #en-bottom { height: 13; }
    EngineView.-compact #en-tokens { display: none; }
    EngineView.-compact #en-words { display: none; }
    EngineView.-compact #en-bottom { height: 9; }
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._replica: str | None = None

    def compose(self) -> ComposeResult:
        yield Lines(id="en-head")
        with Horizontal(id="en-charts"):
            with Panel(id="en-kv", title="KV cache"):
                yield BrailleChart(id="en-kv-chart", maximum=1.0, caption=" ")
            with Panel(id="en-sched", title="scheduler"):
                yield BrailleChart(id="en-running", minimum_top=1.0, caption="running")
                yield BrailleChart(id="en-waiting", minimum_top=1.0, caption="waiting")
            with Panel(id="en-tokens", title="tokens/s"):
                yield BrailleChart(id="en-in", minimum_top=1.0, caption="in")
                yield BrailleChart(id="en-out", minimum_top=1.0, caption="out")
        with Horizontal(id="en-bottom"):
            with Panel(id="en-meters", title="latency, cache, GPUs"):
                yield Vertical(id="en-rows")
            with Panel(id="en-words", title="replica"):
                yield Lines(id="en-lines")

    @property
    def replica(self) -> ReplicaView | None:
        """The one chosen, else the busiest that is ready."""
        chosen = self.fleet.replicas.get(self._replica or "")
        if chosen is not None:
            return chosen
        ready = [one for one in self.fleet.replicas.values() if one.phase is Phase.READY and one.sample is not None]
        return max(
            ready,
            key=lambda one: ((one.sample.requests_running or 0) if one.sample else 0, one.id),
            default=next(iter(self.fleet.replicas.values()), None),
        )

    def first_focus(self) -> Widget | None:
        return self

    def refresh_data(self) -> None:
        self.set_class(self.compact, "-compact")
        fleet, replica = self.fleet, self.replica
        head = self.query_one("#en-head", Lines)
        if replica is None:
            head.set_lines([plain(" no replica yet: see 3 Models", Severity.DIM)])
            return
        self._replica = replica.id
        now = self.host.now()
        stale = models.is_stale(fleet, replica, now)
        head.set_lines([engine.headline(replica, self.host.wall())], stale=stale)
        name = f"replica/{replica.id}"
        kv_note, kv_severity = engine.kv_note(replica)
        self.query_one("#en-kv", Panel).set_note(kv_note, kv_severity)
        run_note, run_severity = engine.scheduler_note(replica)
        self.query_one("#en-sched", Panel).set_note(run_note, run_severity)
        self.query_one("#en-tokens", Panel).set_note(engine.tokens_note(replica))
        kv_chart = self.query_one("#en-kv-chart", BrailleChart)
        severity = kv_severity if kv_severity is not Severity.NORMAL else None
        kv_chart.set_values(
            fleet.series.read(f"{name}/kv"), severity=severity, caption=engine.kv_caption(replica), stale=stale
        )
        for series in ("running", "waiting", "in", "out"):
            self.query_one(f"#en-{series}", BrailleChart).set_values(fleet.series.read(f"{name}/{series}"), stale=stale)
        self._meters(replica, stale=stale)
        self.query_one("#en-words", Panel).set_title(f"{short_replica(replica.id)} · {replica.node}")
        self.query_one("#en-lines", Lines).set_lines(models.replica_lines(fleet, replica, now), stale=stale)

    def _meters(self, replica: ReplicaView, *, stale: bool) -> None:
        rows = self.query_one("#en-rows", Vertical)
        lines = engine.meters(self.fleet, replica)
        wanted = {f"en-meter-{line.key}" for line in lines}
        for child in list(rows.children):
            if child.id not in wanted:
                child.remove()
        for line in lines:
            found = rows.query(f"#en-meter-{line.key}")
            row = found.first(MeterRow) if found else None
            if row is None:
                row = MeterRow(line.label, label_width=12, value_width=10, id=f"en-meter-{line.key}")
                rows.mount(row)
            row.set(line.fraction, line.value, line.severity, series=line.series, stale=stale)

    @property
    def selection(self) -> Selection | None:
        replica = self.replica
        return Selection("replica", replica.id) if replica is not None else None

    def show_thing(self, selection: Selection) -> None:
        found = selection.replicas(self.fleet)
        if found:
            self._replica = found[0].id
            self.refresh_data()

    def _step(self, by: int) -> None:
        ids = sorted(self.fleet.replicas)
        if ids:
            at = ids.index(self._replica) if self._replica in ids else 0
            self._replica = ids[(at + by) % len(ids)]
            self.refresh_data()
            self.post_message(HintsChanged())

    def key_right(self) -> None:
        self._step(1)

    def key_left(self) -> None:
        self._step(-1)

    def hints(self) -> list[KeyHint]:
        return [
            KeyHint("←", "", "left", 0),
            KeyHint("→", "other replica", "right", 0),
            *self.acting(KeyHint("r", "restart", "r", 1), KeyHint("d", "drain", "d", 1)),
            KeyHint("l", "logs", "l", 0),
            KeyHint("R", "requests", "R", 1),
            KeyHint("t", "chat", "t", 0),
            KeyHint("e", "events", "e", 2),
            KeyHint("n", "its node", "n", 2),
            KeyHint("m", "its model", "m", 2),
            KeyHint("?", "help", "question_mark", 0),
        ]
