"""The one owner of one replica: looks, lets `decide` say what to do, does it, writes down what came of it.

Nobody else starts or stops this replica's engine or changes its phase; others ask `status`. Everything needed to go on after
a restart of the agent is on disk before it matters: the signed order before it is obeyed, the start as soon as it has
a pid, readiness as soon as it is proven (so that an adopted engine is routable at once).
"""

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from nebula_agent.adapters import log_files
from nebula_agent.adapters.node_files import KeptReplica
from nebula_agent.adapters.ports import held_by
from nebula_agent.adapters.programs import why_missing
from nebula_agent.adapters.runtime import Ended, Room, Runtime, Started
from nebula_agent.decisions.backoff import Failures
from nebula_agent.decisions.exits import describe_exit, find_cause
from nebula_agent.decisions.launch_digest import launch_digest
from nebula_agent.decisions.lifecycle import Action, Life, Limits, Seen, Verb, decide, first_step
from nebula_agent.decisions.policy import why_refused
from nebula_agent.engines.base import Engine, Launch, is_path
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.context import Context
from nebula_agent.loops.engine_monitor import EngineMonitor
from nebula_core.errors import NebulaError
from nebula_core.records.placement import Placement, SignedPlacement, Wanted
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import Problem
from nebula_core.records.sample import GpuSample
from nebula_core.security.files import read_secret, write_secret
from nebula_core.security.sealing import seal
from nebula_core.security.text import clean_text

log = structlog.get_logger(__name__)

#: Look again after this long even if nobody called: the end of an engine, its monitor and new orders do.
LOOK_SECONDS = 5.0
#: While something is awaited that calls nobody (a GPU to become free).
BLOCKED_SECONDS = 0.5
#: After a stop that even SIGKILL could not finish.
STUCK_SECONDS = 30.0
FAILURE_LINES = 20
SHORTEN_SECONDS = 30.0
#: How often the shared memory of a running engine is looked up, for the day it is killed.
SHM_SECONDS = 60.0

#: A process below this is a display or a monitor, no engine.
IDLE_BYTES = 2 * 1024**3

_PASSED_ON = frozenset(
    {
        *(
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "LANG",
            "LC_ALL",
            "LC_CTYPE",
            "TZ",
            "TMPDIR",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
        ),
        *("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"),
        *("HF_TOKEN_PATH", "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy"),
        # Whoever started the whole finds its leftovers by it.
        *("no_proxy", "NEBULA_UP"),
    }
)


class ReplicaOwner:
    """Runs until it is cancelled. `holder_of` names another replica of this node that still holds a GPU."""

    def __init__(
        self,
        kept: KeptReplica,
        placement: Placement,
        context: Context,
        holder_of: Callable[[str, str], str | None],
    ) -> None:
        self.placement = placement
        self._kept = kept
        self._context = context
        self._holder_of = holder_of
        now, wall = context.clock.monotonic(), context.clock.wall()
        self._since = now
        self._failures = Failures(kept.failures, kept.in_a_row).shifted(now - wall)
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._monitor: EngineMonitor | None = None
        self._watching: asyncio.Task[None] | None = None
        self._begun_at: float | None = None
        self._key: str | None = None
        self._sealed: str | None = None
        self._exit_reason: str | None = None
        self._start_failed = False
        self._claiming = False
        self._life = Life.NONE
        self._shortened_at = now
        self._shm_at = now

    # --- what others ask

    @property
    def replica(self) -> str:
        return self._kept.replica

    @property
    def phase(self) -> Phase:
        return self._kept.phase

    @property
    def started(self) -> Started | None:
        return self._kept.started

    @property
    def held_gpus(self) -> frozenset[str]:
        """GPUs that a process of this replica may hold."""
        started = self._kept.started
        held = started.gpus if started is not None else ()
        return frozenset((*held, *self.placement.gpus)) if self._claiming else frozenset(held)

    @property
    def log_file(self) -> Path:
        return self._context.files.log_file(self.replica)

    @property
    def monitor(self) -> EngineMonitor | None:
        return self._monitor

    def status(self, now: float) -> ReplicaStatus:
        placement, kept, monitor = self.placement, self._kept, self._monitor
        started = kept.started
        program = self._context.programs.get(placement.spec.engine)
        sampled_at = monitor.sampled_at if monitor is not None else None
        return ReplicaStatus(
            id=kept.replica,
            deployment=placement.deployment,
            model=placement.deployment,
            node=placement.node,
            gpus=placement.gpus if started is None else started.gpus,
            engine=placement.spec.engine,
            engine_version=(monitor.version if monitor else None) or (program.version_text if program else None),
            runtime=started.runtime if started is not None else self._runtime_name(),
            phase=kept.phase,
            phase_reason=kept.phase_reason,
            phase_seconds=round(now - self._since, 1),
            generation=placement.generation,
            placement_epoch=placement.epoch,
            placement_revision=placement.revision,
            endpoint=None
            if started is None
            else EndpointAddress(host=self._context.settings.address, port=started.port, sealed_key=self._sealed),
            engine_epoch=None if started is None else started.engine_epoch,
            pid=None if started is None else started.pid,
            container_id=None if started is None else started.container_id,
            started_at=None if started is None else started.started_at,
            restarts=kept.restarts,
            simulated=placement.spec.engine == "simulated",
            load_seconds=kept.load_seconds,
            sample=monitor.sample if monitor is not None else None,
            sample_age_seconds=None if sampled_at is None else round(now - sampled_at, 2),
            failure_log=kept.failure_log,
        )

    # --- what others tell

    async def obey(self, placement: Placement, signed: SignedPlacement) -> None:
        """A verified order; on disk when this returns."""
        self.placement = placement
        await self._keep(placement=signed)
        self._wake.set()

    def look_again(self) -> None:
        self._wake.set()

    # --- life

    async def adopt(self) -> None:
        """Finds what the kept start says, before anything is reported. Nothing is restarted by this."""
        started = self._kept.started
        if started is None:
            if self._kept.phase not in {Phase.STOPPED, Phase.FAILED, Phase.PENDING}:
                await self._keep(phase=Phase.PENDING)
            return
        self._key = self._kept_key()
        self._seal(started)
        self._context.ports.reserve(self.replica, started.ports)
        self._context.processes.know(started, self.replica)
        runtime = self._context.runtimes.get(started.runtime)
        if runtime is None or runtime.look(started).life is not Life.RUNNING:
            return
        self._watch(started, proven=self._kept.proven)
        log.info("replica_adopted", replica=self.replica, pid=started.pid, phase=self._kept.phase.value)

    async def run(self) -> None:
        """Owns the replica until cancelled; the engine stays."""
        try:
            started = self._kept.started
            if started is not None and self._monitor is None:
                self._watch(started, proven=self._kept.proven)
            while True:
                pause = await self.iterate()
                await self._rest(pause)
        finally:
            await self._unwatch()

    async def iterate(self) -> float:
        """One look, one step; how long to rest at most."""
        self._wake.clear()
        now = self._context.clock.monotonic()
        digest = launch_digest(self.placement)
        seen = self._look()
        action = decide(self.placement.wanted, digest, seen, now, self._limits())
        match action.verb:
            case Verb.START:
                await self._start(digest)
                return 0.0
            case Verb.STOP:
                return await self._stop(action, digest)
            case Verb.MOVE:
                await self._move(action, digest)
                return 0.0
            case Verb.WAIT:
                await self._settle(action)
                await self._housekeeping(now)
        if action.at is not None:
            return max(0.0, min(LOOK_SECONDS, action.at - now))
        return BLOCKED_SECONDS if seen.blocked is not None else LOOK_SECONDS

    async def stop_for_good(self, term_seconds: float) -> None:
        """The agent leaves and takes its engines along; the order stays and is obeyed again when it returns."""
        started = self._kept.started
        if started is not None:
            await self._unwatch()
            ended = await self._runtime_of(started).stop(started, term_seconds=term_seconds)
            if ended.survivors:
                log.error("engine_survives", replica=self.replica, pids=list(ended.survivors))
                return
            self._forget_key()
            self._context.ports.release(self.replica)
            await self._keep(phase=Phase.STOPPED, phase_reason="stopped with the agent", started=None, proven=False)

    def let_go(self) -> None:
        """The agent leaves and the engine stays."""
        if self._kept.started is not None:
            self._runtime_of(self._kept.started).let_go(self._kept.started)

    # --- looking

    def _look(self) -> Seen:
        kept, monitor = self._kept, self._monitor
        life = Life.NONE
        if self._start_failed:
            life = Life.ENDED
        elif kept.started is not None:
            look = self._runtime_of(kept.started).look(kept.started)
            life = look.life
            if life is Life.ENDED and self._exit_reason is None:
                self._exit_reason = self._why_ended(kept.started, look.status)
        self._life = life
        starting = life is Life.NONE and self.placement.wanted is Wanted.RUN
        return Seen(
            phase=kept.phase,
            life=life,
            digest=kept.digest,
            started_at=self._begun_at,
            proven=kept.proven or (monitor is not None and monitor.proven),
            unhealthy_since=monitor.unhealthy_since if monitor else None,
            silent_since=monitor.silent_since if monitor else None,
            frozen_since=monitor.frozen_since if monitor else None,
            exit_reason=self._exit_reason,
            waiting_for=monitor.waiting_for if monitor else None,
            failures=self._failures,
            given_up=kept.given_up,
            blocked=self._why_blocked() if starting else None,
            refused=self._why_refused() if starting else None,
            phase_reason=kept.phase_reason,
        )

    def _limits(self) -> Limits:
        health = self._context.settings.health
        return Limits(
            start_deadline=self.placement.spec.start_deadline_seconds,
            frozen=health.frozen_seconds,
            silent=health.silent_seconds,
            unhealthy=health.unhealthy_seconds,
        )

    def _why_refused(self) -> str | None:
        spec = self.placement.spec
        engine = ENGINES.get(spec.engine)
        if engine is None:
            return f"this agent cannot run engine {spec.engine}"
        runtime = self._runtime_name()
        if runtime not in self._context.runtimes:
            return f"this node has no runtime {runtime} (has {', '.join(self._context.runtimes)})"
        reason = why_refused(self._context.policy, self.placement)
        if reason is not None:
            return reason
        if spec.engine not in self._context.programs:
            return why_missing(engine, self._context.settings.engines.of(spec.engine).program)
        if spec.engine != "simulated" and is_path(spec.source) and not Path(spec.source).exists():
            return f"the model {spec.source} is not on this node; copy it there, or restrict the placement by labels"
        return None

    def _why_blocked(self) -> str | None:
        reading = self._context.gpus
        inventory = {gpu.id: gpu for gpu in reading.inventory}
        faults = {sample.gpu: sample for sample in reading.samples}
        for gpu in self.placement.gpus:
            known = inventory.get(gpu)
            if known is None:
                return f"gpu {gpu} is not on this node, or its driver has not shown it yet"
            holder = self._holder_of(gpu, self.replica)
            if holder is not None:
                return f"gpu {known.index} is still held by {holder}"
            sample = faults.get(gpu)
            if sample is not None and sample.fault is not None:
                return f"gpu {known.index}: {sample.fault}"
            if sample is not None and self.placement.spec.gpu_memory_bytes is None:
                stranger = _stranger(sample)
                if stranger is not None:
                    return f"gpu {known.index}: {stranger}"
        return None

    def _why_ended(self, started: Started, status: int | None) -> str:
        if started.boot_id != self._context.boot_id:
            return "the machine was restarted"
        lines = log_files.last_lines(Path(started.log_file), 200, after=started.log_offset)
        reason = describe_exit(status, lines)
        if find_cause(lines) == "its port was taken":
            reason = f"{reason}; {held_by(started.port)}"
        return clean_text(reason, max_length=500)

    # --- doing

    async def _start(self, digest: str) -> None:
        context, placement, spec = self._context, self.placement, self.placement.spec
        self._exit_reason = None
        first = self._kept.digest is None
        self._claiming = True
        await self._keep(
            phase=Phase.CREATING,
            phase_reason=None,
            given_up=None,
            digest=digest,
            restarts=self._kept.restarts + (0 if first else 1),
        )
        engine = ENGINES[spec.engine]
        settings = context.settings
        try:
            block = await context.ports.take(self.replica, engine.ports_needed)
            self._key = secrets.token_urlsafe(32) if context.sealing_key is not None else None
            if self._key is not None:
                await asyncio.to_thread(
                    write_secret, context.files.secret_file(self.replica), f"{self._key}\n".encode()
                )
            launch = Launch(
                replica=self.replica,
                model=placement.deployment,
                spec=spec,
                program=context.programs[spec.engine],
                gpus=placement.gpus,
                host=settings.engine_host,
                ports=block,
                key=self._key,
                key_file=context.files.key_file(self.replica),
                term_seconds=settings.term_seconds,
                simulated_preset=settings.simulated.preset,
            )
            room = Room(
                replica=self.replica,
                engine_epoch=secrets.token_hex(6),
                log_file=context.files.log_file(self.replica),
                environment=self._environment(spec.engine),
            )
            started = await context.runtimes[self._runtime_name()].start(launch, engine.command(launch), room)
        except (OSError, NebulaError) as error:
            self._start_failed, self._claiming = True, False
            self._exit_reason = f"it could not be started: {error}"
            log.error("engine_not_started", replica=self.replica, error=str(error))
            return
        self._seal(started)
        await self._keep(started=started, proven=False)
        self._claiming = False
        self._watch(started, proven=False)
        log.info(
            "engine_started",
            replica=self.replica,
            engine=spec.engine,
            pid=started.pid,
            port=started.port,
            gpus=list(placement.gpus),
            engine_epoch=started.engine_epoch,
        )

    async def _stop(self, action: Action, digest: str) -> float:
        started = self._kept.started
        failure_log = self._failure_log(started) if action.failure else self._kept.failure_log
        ready_for = self._ready_for()
        if started is not None:
            log.info("engine_stopping", replica=self.replica, pid=started.pid, reason=action.reason)
            await self._keep(
                phase=self._while_stopping(action), phase_reason=_while_stopping(action), failure_log=failure_log
            )
            # The monitor goes on until the engine is gone: the last figures are those of the drain.
            ended = await self._runtime_of(started).stop(started, term_seconds=self._context.settings.term_seconds)
            if not self._is_gone(started, ended):
                return STUCK_SECONDS
        await self._unwatch()
        self._forget_key()
        self._context.ports.release(self.replica)
        self._start_failed = False
        self._begun_at = None
        await self._enter(action, digest, ready_for=ready_for, failure_log=failure_log, started=None, proven=False)
        return 0.0

    def _while_stopping(self, action: Action) -> Phase:
        """No new request may come to an engine that is being ended, whatever its placement says."""
        if action.phase is Phase.FAILED:
            return first_step(self.phase, Phase.FAILED)
        leaving = self.phase is Phase.READY and self.placement.wanted is Wanted.RUN
        return Phase.LOADING if leaving else self.phase

    def _is_gone(self, started: Started, ended: Ended) -> bool:
        subject = f"survivors:{self.replica}"
        if not ended.survivors:
            self._context.problems.set(subject, None)
            log.info("engine_stopped", replica=self.replica, pid=started.pid, killed=ended.killed, swept=ended.swept)
            return True
        pids = ", ".join(map(str, ended.survivors))
        message = f"{self.replica}: SIGKILL does not end pid {pids}; its GPU memory stays held"
        self._context.problems.set(
            subject,
            Problem(
                code="unkillable",
                message=message,
                severity="crit",
                hint="A driver call hangs: look into the kernel log, reboot the node",
            ),
        )
        log.error("engine_survives", replica=self.replica, pids=list(ended.survivors))
        return False

    async def _move(self, action: Action, digest: str) -> None:
        await self._enter(action, digest, ready_for=self._ready_for(), failure_log=self._kept.failure_log)

    async def _enter(
        self,
        action: Action,
        digest: str,
        *,
        ready_for: float | None,
        failure_log: tuple[str, ...],
        **changes: object,
    ) -> None:
        """Takes the phase of an action, and counts a failure."""
        context, now = self._context, self._context.clock.monotonic()
        given_up = self._kept.given_up
        if action.failure:
            self._failures = self._failures.failed(now, ready_for=ready_for)
            if self._failures.spent(now):
                given_up = digest
            log.error(
                "replica_failed",
                replica=self.replica,
                reason=action.reason,
                failures=len(self._failures.times),
                given_up=given_up is not None,
            )
        shift = context.clock.wall() - now
        await self._keep(
            phase=action.phase,
            phase_reason=action.reason,
            given_up=given_up,
            failures=tuple(at + shift for at in self._failures.times),
            in_a_row=self._failures.in_a_row,
            failure_log=failure_log,
            **self._learned(),
            **changes,
        )
        if action.phase is Phase.READY:
            log.info("replica_ready", replica=self.replica, load_seconds=self._kept.load_seconds)

    async def _settle(self, action: Action) -> None:
        """Nothing to do but to write down what was learned."""
        changes = self._learned()
        if action.reason != self._kept.phase_reason:
            changes["phase_reason"] = action.reason
        if changes:
            await self._keep(**changes)

    def _learned(self) -> dict[str, object]:
        """What the monitor found out and the disk does not know yet."""
        monitor = self._monitor
        if monitor is None or not monitor.proven or self._kept.proven:
            return {}
        learned: dict[str, object] = {"proven": True}
        if self._begun_at is not None and monitor.ready_at is not None:
            learned["load_seconds"] = round(monitor.ready_at - self._begun_at, 3)
        return learned

    async def _housekeeping(self, now: float) -> None:
        started = self._kept.started
        if started is None:
            return
        if now - self._shortened_at >= SHORTEN_SECONDS:
            self._shortened_at = now
            await asyncio.to_thread(log_files.shorten, Path(started.log_file))
        if self._kept.proven and now - self._shm_at >= SHM_SECONDS and started.runtime == "process":
            self._shm_at = now
            await self._context.processes.remember_shared_memory(started)

    # --- small parts

    def _runtime_name(self) -> str:
        wanted = self.placement.spec.runtime
        return "process" if wanted == "auto" else wanted

    def _runtime_of(self, started: Started) -> Runtime:
        return self._context.runtimes[started.runtime]

    def _environment(self, kind: str) -> dict[str, str]:
        allowed = _PASSED_ON | set(self._context.policy.environment)
        passed = {name: value for name, value in os.environ.items() if name in allowed}
        # A service may have none, and engines keep their caches there.
        passed.setdefault("HOME", str(self._context.files.directory))
        return passed | self._context.settings.engines.of(kind).env

    def _watch(self, started: Started, *, proven: bool) -> None:
        context, spec = self._context, self.placement.spec
        engine: Engine = ENGINES[spec.engine]
        now = context.clock.monotonic()
        # An adopted engine's deadline counts from its own start.
        self._begun_at = now - max(0.0, context.clock.wall() - started.started_at)
        self._monitor = EngineMonitor(
            engine=engine,
            model=self.placement.deployment,
            spec=spec,
            started=started,
            key=self._key,
            http=context.http,
            clock=context.clock,
            proven=proven,
            on_change=self.look_again,
        )
        self._watching = asyncio.create_task(self._monitor.run(), name=f"monitor:{self.replica}")

    async def _unwatch(self) -> None:
        task, self._watching, self._monitor = self._watching, None, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _rest(self, seconds: float) -> None:
        """Until somebody calls, the engine ends, or the time is over."""
        if seconds <= 0 or self._wake.is_set():
            await asyncio.sleep(0)
            return
        waits: set[asyncio.Task[object]] = {asyncio.create_task(self._woken())}
        started = self._kept.started
        if started is not None and self._life is Life.RUNNING:
            waits.add(asyncio.create_task(self._ended(started, seconds)))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _woken(self) -> None:
        await self._wake.wait()

    async def _ended(self, started: Started, seconds: float) -> None:
        await self._runtime_of(started).ended(started, seconds + 1.0)

    def _ready_for(self) -> float | None:
        monitor = self._monitor
        if monitor is None or monitor.ready_at is None:
            return None
        return self._context.clock.monotonic() - monitor.ready_at

    def _failure_log(self, started: Started | None) -> tuple[str, ...]:
        if started is None:
            return ()
        lines = log_files.last_lines(Path(started.log_file), FAILURE_LINES, after=started.log_offset)
        return tuple(clean_text(line, max_length=500) for line in lines)

    def _seal(self, started: Started) -> None:
        self._sealed = None
        if self._key is not None and self._context.sealing_key is not None:
            context = f"{self.replica}|{started.engine_epoch}".encode()
            self._sealed = seal(self._context.sealing_key, self._key.encode(), context=context)

    def _kept_key(self) -> str | None:
        path = self._context.files.secret_file(self.replica)
        if not path.exists():
            return None
        try:
            return read_secret(path).decode("ascii").strip() or None
        except (NebulaError, UnicodeDecodeError) as error:
            log.error("engine_key_unreadable", replica=self.replica, error=str(error))
            return None

    def _forget_key(self) -> None:
        self._key = self._sealed = None
        for path in (self._context.files.secret_file(self.replica), self._context.files.key_file(self.replica)):
            path.unlink(missing_ok=True)

    async def _keep(self, **changes: object) -> None:
        """Changes what is known and writes it down; tells the reporter."""
        former = self._kept
        kept = former.model_copy(update=changes)
        if kept == former:
            return
        self._kept = kept
        if kept.phase is not former.phase:
            self._since = self._context.clock.monotonic()
            log.info(
                "replica_phase",
                replica=self.replica,
                phase=kept.phase.value,
                former=former.phase.value,
                reason=kept.phase_reason,
            )
        self._context.changed()
        # Orders come from another task: the newest state is written, and one writing at a time.
        async with self._writing:
            await asyncio.to_thread(self._context.files.keep_replica, self._kept)


def _stranger(sample: GpuSample) -> str | None:
    """Who else fills a GPU that is to be had whole; measured, not booked (gpustack#3859)."""
    held = [each for each in sample.processes if each.replica is None and (each.memory_used_bytes or 0) > IDLE_BYTES]
    if not held:
        return None
    most = max(held, key=lambda each: each.memory_used_bytes or 0)
    name = f" ({most.name})" if most.name else ""
    return f"{(most.memory_used_bytes or 0) / 1024**3:.1f} GiB are held by pid {most.pid}{name}, which is none of ours"


def _while_stopping(action: Action) -> str | None:
    if action.failure:
        return action.reason
    return "stopping" if action.reason is None else f"stopping: {action.reason}"
