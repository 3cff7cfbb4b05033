"""One start of an engine, watched over HTTP: is it ready, does it answer, does it move, what are its figures?

Until readiness is proven (health, model listed, one token out) it is asked often, so that a quick start is ready quickly;
from then on once a second, and when it has had nothing to do for a while, for a canary token. The monitor only states facts
with their times; what follows from them is `decide`'s.
"""

import asyncio
import json
from collections.abc import Callable

import structlog

from nebula_agent.adapters.engine_http import Answer, EngineHttp, Said
from nebula_agent.adapters.runtime import Started
from nebula_agent.engines.base import Engine, Program
from nebula_agent.loops.engine_figures import EngineFigures
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.engine_health import EngineHealth, MetricsSchema
from nebula_core.records.sample import EngineSample
from nebula_core.runtime.clock import Clock

log = structlog.get_logger(__name__)

WATCH_SECONDS = 1.0
#: `/health` of an engine that is well and whose figures come.
HEALTH_SECONDS = 2.0
#: While it loads: at first in short steps (a small engine is there in 0.1 s), then patiently.
EAGER_SECONDS = 0.05
PATIENT_SECONDS = 0.5
EAGER_FOR_SECONDS = 5.0
#: `/metrics` for the evidence of a hang.
_PAGE_SECONDS = 2.0
#: A prompt that is tokenised to this much where the answer does not say.
_PROBE_TOKENS = 1.0


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
        program: Program | None,
        on_change: Callable[[], None],
        canary_idle_seconds: float = 60.0,
        canary_seconds: float = 15.0,
    ) -> None:
        self.proven = proven
        self.waiting_for: str | None = None
        self.unhealthy_since: float | None = None
        self.silent_since: float | None = None
        self.ready_at: float | None = clock.monotonic() if proven else None
        #: As the engine says its version, else as its package does.
        self.figures = EngineFigures(engine, model, program.version_text if program is not None else None)
        self._engine = engine
        self._model = model
        self._spec = spec
        self._started = started
        self._key = key
        self._http = http
        self._clock = clock
        self._on_change = on_change
        self._canary_idle_seconds = canary_idle_seconds
        self._canary_seconds = canary_seconds
        self._canary: asyncio.Task[None] | None = None
        self._began = clock.monotonic()
        self._asked_at = float("-inf")
        self._asked_who = False
        self._answers: bool | None = None

    @property
    def version(self) -> str | None:
        return self.figures.version

    @property
    def schema(self) -> MetricsSchema | None:
        return self.figures.schema

    @property
    def sample(self) -> EngineSample | None:
        return self.figures.sample

    @property
    def sampled_at(self) -> float | None:
        return self.figures.sampled_at

    @property
    def frozen_since(self) -> float | None:
        return self.figures.progress.still_since

    @property
    def canary_failures(self) -> int:
        return self.figures.canary.failures

    def health(self, now: float, *, alive: bool | None, ready: bool) -> EngineHealth:
        """The three kinds of health of this start, as they are reported."""
        still, canary, sample = self.frozen_since, self.figures.canary, self.sample
        if still is not None:
            progress = "still"
        elif sample is None or sample.requests_running is None:
            progress = "unknown"
        else:
            progress = "moving" if sample.requests_running else "idle"
        return EngineHealth(
            engine_epoch=self._started.engine_epoch,
            alive=alive,
            ready=ready,
            answers=self._answers,
            progress=progress,
            still_seconds=None if still is None else round(now - still, 1),
            canary=None if canary.passed is None else ("passed" if canary.passed else "failed"),
            canary_age_seconds=None if canary.answered_at is None else round(now - canary.answered_at, 1),
        )

    async def run(self) -> None:
        """For as long as the engine runs; cancelled at its end."""
        try:
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
        finally:
            await self._end_canary()

    def _pause(self, began: float) -> float:
        now = self._clock.monotonic()
        if self.proven:
            return max(0.0, began + WATCH_SECONDS - now)
        return EAGER_SECONDS if now - self._began < EAGER_FOR_SECONDS else PATIENT_SECONDS

    async def prove_once(self) -> None:
        """One try at the way to readiness; says how far it came."""
        host, port = self._started.probe_host, self._started.port
        said = await self._http.health(host, port, self._engine.health_path)
        self._answers = _as_bool(said)
        if said.answer is Answer.YES:
            said = await self._http.lists_model(host, port, self._model, self._key)
        if said.answer is Answer.YES:
            probe = self._engine.probe(self._model, self._spec)
            said = await self._http.one_token(host, port, probe.path, probe.body, self._key)
        if said.answer is not Answer.YES:
            self._waits_for(said.detail)
            return
        await self._ask_who()
        self._waits_for(None)
        self.ready_at = self._clock.monotonic()
        self.proven = True
        self._on_change()
        await self.watch_once()

    async def watch_once(self) -> None:
        """One scrape, and a look at the health every other time, or each time while anything is wrong."""
        host, port = self._started.probe_host, self._started.port
        if not self._asked_who:
            await self._ask_who()  # an adopted engine: another agent had asked
        figures = await self._http.figures(host, port, self._key)
        now = self._clock.monotonic()
        moved = self._take(figures, now)
        if self._canary is None and self.figures.canary.due(now, after=self._canary_idle_seconds):
            self.figures.canary_asked()
            self._canary = asyncio.create_task(self.canary_once(), name=f"canary:{self._started.engine_epoch}")
        well = figures.answer is Answer.YES and self.unhealthy_since is None and self.silent_since is None
        if well and now - self._asked_at < HEALTH_SECONDS * 0.75:
            return
        self._asked_at = now
        health = await self._http.health(host, port, self._engine.health_path)
        self._judge(figures, health, self._clock.monotonic(), moved=moved)

    async def canary_once(self) -> None:
        """Asks an idle engine for one token."""
        probe = self._engine.probe(self._model, self._spec)
        host, port = self._started.probe_host, self._started.port
        try:
            said = await self._http.one_token(
                host, port, probe.path, probe.body, self._key, seconds=self._canary_seconds
            )
        except Exception:
            # Ours, not the engine's: it is no evidence against it.
            log.exception("canary_not_asked", engine_epoch=self._started.engine_epoch)
            said = Said(Answer.REFUSED)
        finally:
            self._canary = None
        # Nobody listening is a death, and the process itself tells of that.
        passed = said.answer in {Answer.YES, Answer.REFUSED}
        former = self.canary_failures
        now = self._clock.monotonic()
        self.figures.canary_answered(now, passed=passed, prompt_tokens=_prompt_tokens(said))
        if not passed:
            log.warning("canary_failed", engine_epoch=self._started.engine_epoch, detail=said.detail)
        if self.canary_failures != former:
            self._on_change()

    async def page(self) -> str:
        """Its `/metrics` now; "" when they do not come."""
        said = await self._http.figures(self._started.probe_host, self._started.port, self._key, seconds=_PAGE_SECONDS)
        return said.body.decode("utf-8", "replace")

    async def _end_canary(self) -> None:
        canary = self._canary
        if canary is not None:
            canary.cancel()
            await asyncio.gather(canary, return_exceptions=True)

    async def _ask_who(self) -> None:
        """Once per start: its version, and with it the names its figures should have."""
        self._asked_who = True
        engine, started = self._engine, self._started
        answer = await self._http.info(started.probe_host, started.port, engine.info_path, self._key)
        self.figures.told(None if answer is None else engine.read_info(answer))

    def _take(self, said: Said, now: float) -> bool:
        if said.answer is not Answer.YES:
            return False
        former, was_still, failed = self.schema, self.frozen_since, self.canary_failures
        moved = self.figures.take(said.body.decode("utf-8", "replace"), now)
        schema = self.schema
        if schema is not None and schema.missing and (former is None or former.missing != schema.missing):
            log.warning(
                "metrics_missing",
                engine=self._engine.kind,
                version=self.version,
                names=list(schema.missing),
                off=list(schema.off),
                resembling=[list(pair) for pair in schema.resembling],
            )
        if (was_still is None) != (self.frozen_since is None) or failed != self.canary_failures:
            self._on_change()
        return moved

    def _judge(self, figures: Said, health: Said, now: float, *, moved: bool) -> None:
        unhealthy, silent = self.unhealthy_since, self.silent_since
        self._answers = _as_bool(health)
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


def _as_bool(said: Said) -> bool | None:
    return None if said.answer is Answer.SILENT else said.answer is Answer.YES


def _prompt_tokens(said: Said) -> float:
    try:
        return float(json.loads(said.body)["usage"]["prompt_tokens"])
    except (ValueError, KeyError, TypeError):
        return _PROBE_TOKENS
