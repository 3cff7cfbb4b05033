"""One start of an engine, watched over HTTP: is it ready, does it answer, does it move, what are its figures?

Until readiness is proven (health, model listed, one token out) it is asked often, so that a quick start is ready quickly;
from then on once a second. The monitor only states facts with their times; what follows from them is `decide`'s.
"""

from collections.abc import Callable

import structlog

from nebula_agent.adapters.engine_http import Answer, EngineHttp, Said
from nebula_agent.adapters.runtime import Started
from nebula_agent.decisions.progress import Progress
from nebula_agent.decisions.rates import History
from nebula_agent.engines.base import Engine
from nebula_agent.engines.metrics import read, sample
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.sample import EngineSample
from nebula_core.runtime.clock import Clock
from nebula_core.wire.exposition import Scanner

log = structlog.get_logger(__name__)

WATCH_SECONDS = 1.0
#: `/health` of an engine that is well and whose figures come.
HEALTH_SECONDS = 2.0
#: While it loads: at first in short steps (a small engine is there in 0.1 s), then patiently.
EAGER_SECONDS = 0.05
PATIENT_SECONDS = 0.5
EAGER_FOR_SECONDS = 5.0

_SCANNERS: dict[str, Scanner] = {}


class EngineMonitor:
    """Asks; keeps what came of it. Times are monotonic seconds."""

    def __init__(
        self,
        *,
        engine: Engine,
        model: str,
        spec: DeploymentSpec,
        started: Started,
        key: str | None,
        http: EngineHttp,
        clock: Clock,
        proven: bool,
        on_change: Callable[[], None],
    ) -> None:
        self.proven = proven
        self.waiting_for: str | None = None
        self.unhealthy_since: float | None = None
        self.silent_since: float | None = None
        self.sample: EngineSample | None = None
        self.sampled_at: float | None = None
        self.version: str | None = None
        self.ready_at: float | None = clock.monotonic() if proven else None
        self._engine = engine
        self._model = model
        self._spec = spec
        self._started = started
        self._key = key
        self._http = http
        self._clock = clock
        self._on_change = on_change
        self._began = clock.monotonic()
        self._asked_at = float("-inf")
        self._progress = Progress()
        self._history = History()
        self._scanner = _SCANNERS.setdefault(engine.kind, Scanner(engine.names.wanted()))

    @property
    def frozen_since(self) -> float | None:
        return self._progress.still_since

    async def run(self) -> None:
        """For as long as the engine runs; cancelled at its end."""
        while True:
            began = self._clock.monotonic()
            try:
                if self.proven:
                    await self.watch_once()
                else:
                    await self.prove_once()
            except Exception:
                log.exception("engine_monitor_failed", engine_epoch=self._started.engine_epoch)
            await self._clock.sleep(self._pause(began))

    def _pause(self, began: float) -> float:
        now = self._clock.monotonic()
        if self.proven:
            return max(0.0, began + WATCH_SECONDS - now)
        return EAGER_SECONDS if now - self._began < EAGER_FOR_SECONDS else PATIENT_SECONDS

    async def prove_once(self) -> None:
        """One try at the way to readiness; says how far it came."""
        host, port = self._started.probe_host, self._started.port
        said = await self._http.health(host, port, self._engine.health_path)
        if said.answer is Answer.YES:
            said = await self._http.lists_model(host, port, self._model, self._key)
        if said.answer is Answer.YES:
            probe = self._engine.probe(self._model, self._spec)
            said = await self._http.one_token(host, port, probe.path, probe.body, self._key)
        if said.answer is not Answer.YES:
            self._waits_for(said.detail)
            return
        self.version = await self._http.version(host, port, self._key)
        self._waits_for(None)
        self.ready_at = self._clock.monotonic()
        self.proven = True
        self._on_change()
        await self.watch_once()

    async def watch_once(self) -> None:
        """One scrape, and a look at the health every other time, or each time while anything is wrong."""
        host, port = self._started.probe_host, self._started.port
        figures = await self._http.figures(host, port, self._key)
        now = self._clock.monotonic()
        moved = self._take(figures, now)
        well = figures.answer is Answer.YES and self.unhealthy_since is None and self.silent_since is None
        if well and now - self._asked_at < HEALTH_SECONDS * 0.75:
            return
        self._asked_at = now
        health = await self._http.health(host, port, self._engine.health_path)
        self._judge(figures, health, self._clock.monotonic(), moved=moved)

    def _take(self, figures: Said, now: float) -> bool:
        """Takes a scrape in; whether a counter moved since the last one."""
        if figures.answer is not Answer.YES:
            return False
        scan = self._scanner.scan(figures.body.decode("utf-8", "replace"))
        taken = read(self._engine.names, scan, self._model, now)
        former = self._progress.marks
        self._history = self._history.with_reading(taken.reading)
        news = sample(taken, self._history, self._engine.names)
        self._progress = self._progress.seen(news.requests_running, taken.marks, now)
        first = self.sample is None or self.sample.missing != news.missing
        self.sample, self.sampled_at = news, now
        if first and news.missing:
            log.warning("metrics_missing", engine=self._engine.kind, version=self.version, names=list(news.missing))
        return bool(former) and taken.marks != former

    def _judge(self, figures: Said, health: Said, now: float, *, moved: bool) -> None:
        unhealthy, silent = self.unhealthy_since, self.silent_since
        if health.answer is Answer.YES:
            self.unhealthy_since = self.silent_since = None
        elif health.answer in {Answer.NO, Answer.REFUSED}:
            self.silent_since = None
            # A server that is too busy for its health path while tokens flow is not ill (sglang#22511).
            self.unhealthy_since = None if moved else (now if unhealthy is None else unhealthy)
        elif figures.answer is Answer.SILENT:
            self.silent_since = now if silent is None else silent
        else:
            self.silent_since = None
        if (self.unhealthy_since is None, self.silent_since is None) != (unhealthy is None, silent is None):
            self._on_change()

    def _waits_for(self, detail: str | None) -> None:
        if detail != self.waiting_for:
            self.waiting_for = detail
            self._on_change()
