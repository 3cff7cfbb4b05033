"""The figures of one engine epoch, from scrape to scrape: what is reported, what moved, and what the canaries cost."""

from collections import deque
from collections.abc import Mapping

from nebula_agent.decisions.canary import Canary, Toll
from nebula_agent.decisions.evidence import Counted
from nebula_agent.decisions.progress import Progress
from nebula_agent.decisions.rates import History, Reading, dropped
from nebula_agent.engines.base import Engine, EngineInfo
from nebula_agent.engines.metrics import Figures, read, sample
from nebula_agent.engines.schema import examine
from nebula_agent.engines.versions import parsed
from nebula_core.records.base import frozen_map
from nebula_core.records.engine_health import MetricsSchema
from nebula_core.records.sample import EngineSample
from nebula_core.wire.exposition import Scanner

#: Scrapes kept for the evidence of a hang: a minute of them.
_KEPT = 60

_TOKENS = ("generation_tokens", "finished")

_SCANNERS: dict[str, Scanner] = {}


class EngineFigures:
    """Fed with pages and with what became of canaries; asks nobody."""

    def __init__(self, engine: Engine, model: str, version: str | None) -> None:
        self.sample: EngineSample | None = None
        self.sampled_at: float | None = None
        self.schema: MetricsSchema | None = None
        self.version = version
        self.progress = Progress()
        self.canary = Canary()
        self.counted: deque[Counted] = deque(maxlen=_KEPT)
        self._engine = engine
        self._model = model
        self._scanner = _SCANNERS.setdefault(engine.kind, Scanner(engine.names.wanted())).sibling()
        self._names = engine.names.of_version(parsed(version))
        self._slots: int | None = None
        self._present: frozenset[str] = frozenset()
        self._history = History()
        #: The latest reading as the engine gave it, canaries and all.
        self._raw: Reading | None = None
        self._toll = Toll()
        #: While a canary is under way, and until the scrape after it: the reading before it.
        self._before_canary: Reading | None = None
        self._canary_prompt: float | None = None

    def told(self, info: EngineInfo | None) -> None:
        """What the engine said of itself."""
        if info is not None:
            self.version = info.version or self.version
            self._slots = info.slots
        self._names = self._engine.names.of_version(parsed(self.version))

    def take(self, page: str, now: float) -> bool:
        """Takes a scrape in; whether a counter moved since the last one."""
        scan = self._scanner.scan(page)
        if scan.keys() != self._present:
            self._present = frozenset(scan)
            self.schema = examine(self._engine.names, scan, parsed(self.version), self.version, page=page)
        taken = read(self._names, scan, self._model, now)
        former = self.progress.marks
        running = taken.gauges.get("running")
        self.progress = self.progress.seen(None if running is None else round(running), taken.marks, now)
        self.counted.append(
            Counted(now, running, taken.gauges.get("waiting"), taken.gauges.get("kv_cache_usage"), taken.marks)
        )
        own = self._before_canary is not None
        moved = bool(former) and taken.marks != former
        gauges = self._without_canary(taken)
        self.sample = sample(
            Figures(self._history.readings[-1], gauges, taken.missing, taken.marks),
            self._history,
            self._names,
            self._slots,
        )
        self.sampled_at = now
        load = [gauges.get(name) for name in ("running", "waiting")]
        idle = None if None in load else not any(load)
        self.canary = self.canary.seen(idle=idle, moved=moved and not own, now=now)
        return moved

    def canary_asked(self) -> None:
        self._before_canary, self._canary_prompt = self._raw, None

    def canary_answered(self, now: float, *, passed: bool, prompt_tokens: float) -> None:
        """What it cost is seen at the next scrape. One that waited behind others says nothing of the engine."""
        if passed or not self._others_moved():
            self.canary = self.canary.answered(now, passed=passed)
        self._canary_prompt = prompt_tokens

    def _others_moved(self) -> bool:
        """Whether tokens came since the canary was asked, which has had none."""
        before, after = self._before_canary, self._raw
        if before is None or after is None:
            return False
        return any(after.counters.get(name, 0) > before.counters.get(name, 0) for name in _TOKENS)

    def _without_canary(self, taken: Figures) -> Mapping[str, float]:
        """Brings the history up to this scrape; answers the gauges. Canaries are in neither."""
        raw, former = taken.reading, self._raw
        if former is not None and dropped(former, raw):
            self._toll, self._before_canary = Toll(), None  # another start behind this address
        self._raw = raw
        before, gauges = self._before_canary, taken.gauges
        if before is None:
            self._history = self._history.with_reading(self._toll.off(raw))
            return gauges
        if self._canary_prompt is not None:
            self._toll = self._toll.with_canary(before, raw, self._canary_prompt)
            self._before_canary = self._canary_prompt = None
            self._history = self._history.with_reading(self._toll.off(raw))
            return gauges
        others = max(0.0, gauges.get("running", 0.0) - 1.0)
        reading = self._toll.off(raw)
        if others == 0.0 and self._history.readings:
            # Nobody else is there: what moves now is the canary.
            last = self._history.readings[-1]
            reading = Reading(raw.at, last.counters, last.histograms)
        self._history = self._history.with_reading(reading)
        return frozen_map({**gauges, "running": others}) if "running" in gauges else gauges
