"""The one owner of one replica: looks, lets `decide` say what to do, does it, writes down what came of it.

Nobody else starts or stops this replica's engine or changes its phase; others ask `status`. How a start is made, what
forbids it, what its end says, and what is kept of it stand in modules of their own beside this one.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from nebula_agent.adapters import log_files
from nebula_agent.adapters.disk_threads import DiskSilent
from nebula_agent.adapters.node_files import KeptReplica
from nebula_agent.adapters.runtime import Runtime, Started
from nebula_agent.decisions.launch_digest import launch_digest
from nebula_agent.decisions.lifecycle import Action, ImageState, Life, Seen, Verb, decide, first_step
from nebula_agent.loops.context import Context, replica_lane
from nebula_agent.loops.engine_end import failure_log, given_up, is_gone, last_lines, why_ended
from nebula_agent.loops.engine_key import EngineKey
from nebula_agent.loops.engine_monitor import EngineMonitor
from nebula_agent.loops.engine_start import start_engine
from nebula_agent.loops.engine_watch import EngineWatch
from nebula_agent.loops.evidence import gather_evidence
from nebula_agent.loops.replica_book import NOTE_SECONDS, ReplicaBook
from nebula_agent.loops.replica_status import replica_status
from nebula_agent.loops.start_conditions import why_blocked, why_no_model, why_refused
from nebula_agent.loops.start_image import NextImage
from nebula_agent.loops.start_model import NextModel
from nebula_agent.loops.taken_in import started_again
from nebula_core.errors import NebulaError
from nebula_core.records.adoption import AdoptTarget
from nebula_core.records.placement import Placement, SignedPlacement, Wanted
from nebula_core.records.replica import Phase, ReplicaStatus

log = structlog.get_logger(__name__)

#: Look again after this long even if nobody called: the end of an engine, its monitor and new orders do.
LOOK_SECONDS = 5.0
#: While something is awaited that calls nobody (a GPU to become free).
BLOCKED_SECONDS = 0.5
#: After a stop that even SIGKILL could not finish.
STUCK_SECONDS = 30.0
SHORTEN_SECONDS = 30.0
#: A log is shortened in a moment, or when its disk answers: the replica is looked after meanwhile.
SHORTEN_WAIT_SECONDS = 2.0
#: How often the shared memory of a running engine is looked up, for the day it is killed.
SHM_SECONDS = 60.0


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
        self._book = ReplicaBook(kept, context)
        self._key = EngineKey(kept.replica, context)
        self._context = context
        self._holder_of = holder_of
        self._wake = asyncio.Event()
        self._image = NextImage(self._book, context, self.look_again)
        self._model = NextModel(kept.replica, context, self.look_again)
        self._watch = EngineWatch(context, self.look_again)
        self._exit_reason: str | None = None
        self._start_failed = False
        self._claiming = False
        self._given_up = f"given_up:{kept.replica}"
        self._life = Life.NONE
        self._shortened_at = self._shm_at = context.clock.monotonic()

    # --- what others ask

    @property
    def replica(self) -> str:
        return self._book.replica

    @property
    def phase(self) -> Phase:
        return self._book.kept.phase

    @property
    def started(self) -> Started | None:
        return self._book.kept.started

    @property
    def signed(self) -> SignedPlacement:
        """The order it obeys, as it was signed."""
        return self._book.kept.placement

    @property
    def pinned_image(self) -> str | None:
        """The digest this replica would be started from again."""
        return self._book.kept.image_digest

    @property
    def pinned_models(self) -> frozenset[str]:
        """Entries of the model cache that it runs, or would be started from again."""
        if self.placement.wanted is Wanted.STOP and self.started is None:
            return frozenset()
        return self._model.pins(self.placement)

    @property
    def starting(self) -> bool:
        """A start is being made that is not written down yet."""
        return self._claiming

    @property
    def held_gpus(self) -> frozenset[str]:
        """GPUs that a process of this replica may hold."""
        started = self.started
        held = started.gpus if started is not None else ()
        return frozenset((*held, *self.placement.gpus)) if self._claiming else frozenset(held)

    @property
    def log_file(self) -> Path:
        return self._context.files.log_file(self.replica)

    @property
    def monitor(self) -> EngineMonitor | None:
        return self._watch.monitor

    def status(self, now: float) -> ReplicaStatus:
        alive = None if self.started is None else self._life is not Life.ENDED
        return replica_status(
            self.placement, self._book, self._watch.monitor, self._key.sealed, self._context, now, alive=alive
        )

    # --- what others tell

    async def obey(self, placement: Placement, signed: SignedPlacement) -> None:
        """A verified order; on disk when this returns."""
        self.placement = placement
        await self._book.keep(placement=signed)
        self._wake.set()

    def look_again(self) -> None:
        self._wake.set()

    # --- life

    async def adopt(self) -> None:
        """Finds what the kept start says, before anything is reported. Nothing is restarted by this."""
        started = self.started
        if self.phase is Phase.FAILED and self._book.kept.given_up is not None:
            self._context.problems.set(self._given_up, given_up(self.replica, self._book.kept.phase_reason))
        if started is None:
            if self.phase not in {Phase.STOPPED, Phase.FAILED, Phase.PENDING}:
                await self._book.keep(phase=Phase.PENDING)
            return
        await self._key.find(started.engine_epoch)
        self._context.ports.reserve(self.replica, started.ports)
        runtime = self._context.runtimes.get(started.runtime)
        if runtime is None:
            return
        await runtime.know(started, self.replica)
        if runtime.look(started).life is not Life.RUNNING:
            return
        self._watch.begin(self.placement, started, self._key.key, proven=self._book.kept.proven)
        log.info("replica_adopted", replica=self.replica, pid=started.pid, phase=self.phase.value)

    async def take_in(self, started: Started, digest: str) -> None:
        """A start of this replica that an earlier agent made and could not write down any more."""
        await self._book.keep(started=started, digest=digest, phase=Phase.LOADING, phase_reason=None, proven=False)
        await self.adopt()

    async def run(self) -> None:
        """Owns the replica until cancelled; the engine stays."""
        try:
            started = self.started
            if started is not None and self._watch.monitor is None:
                self._watch.begin(self.placement, started, self._key.key, proven=self._book.kept.proven)
            while True:
                pause = await self.iterate()
                await self._rest(pause)
        finally:
            self._image.let_go()
            self._model.let_go()
            await self._watch.end()

    async def iterate(self) -> float:
        """One look, one step; how long to rest at most."""
        self._wake.clear()
        await self._follow_restart()
        now = self._context.clock.monotonic()
        placement = self.placement
        seen = await self._look()
        if placement is not self.placement:
            return 0.0  # ordered anew meanwhile: what was seen is no answer to that
        digest = launch_digest(placement)
        action = decide(placement.wanted, digest, seen, now, self._watch.limits(self.placement, self.started))
        if action.phase is not Phase.PULLING and action.verb is not Verb.START:
            self._image.let_go()
            self._model.let_go()
        match action.verb:
            case Verb.START:
                if self._takes_in is not None:
                    await self._begin_taken_in(self._takes_in, digest)
                else:
                    await self._start(digest)
                return 0.0
            case Verb.PULL:
                if self._image.state(self.placement) is not None:
                    self._image.begin(self.placement)
                self._model.begin(self.placement)
                await self._enter(action, digest, ready_for=None)
                return 0.0
            case Verb.STOP:
                return await self._stop(action, digest)
            case Verb.MOVE:
                await self._enter(action, digest, ready_for=self._watch.ready_for())
                return 0.0
            case Verb.WAIT:
                if action.phase is Phase.PULLING:
                    self._model.begin(self.placement)
                await self._settle(action)
                await self._housekeeping(now)
        if action.at is not None:
            return max(0.0, min(LOOK_SECONDS, action.at - now))
        return BLOCKED_SECONDS if seen.blocked is not None else LOOK_SECONDS

    async def stop_for_good(self, term_seconds: float) -> None:
        """The agent leaves and takes its engines along; the order stays and is obeyed again when it returns."""
        started = self.started
        if started is not None and started.taken_in:
            # Whoever started it by hand did not mean it to end with this agent.
            await self._watch.end()
            self.let_go()
        elif started is not None:
            await self._watch.end()
            ended = await self._runtime_of(started).stop(started, term_seconds=term_seconds)
            if ended.survivors or ended.failed is not None:
                log.error("engine_survives", replica=self.replica, pids=list(ended.survivors), error=ended.failed)
                return
            self._context.ports.release(self.replica)
            stopped = {"phase": Phase.STOPPED, "phase_reason": "stopped with the agent", "started": None}
            await asyncio.gather(self._forget_key(), self._book.note(**stopped, proven=False))

    def let_go(self) -> None:
        """The agent leaves and the engine stays."""
        if self.started is not None:
            self._runtime_of(self.started).let_go(self.started)

    # --- looking

    async def _look(self) -> Seen:
        kept, monitor = self._book.kept, self._watch.monitor
        life = Life.NONE
        if self._start_failed:
            life = Life.ENDED
        elif kept.started is not None:
            look = self._runtime_of(kept.started).look(kept.started)
            self._life = life = look.life
            if life is Life.ENDED and self._exit_reason is None:
                if kept.phase is Phase.READY:
                    # Out of routing before its log is read, whatever the disk takes for that.
                    await self._book.note(phase=Phase.LOADING, phase_reason="it ended; why is looked up")
                lines = await last_lines(kept.started, self._context)
                self._exit_reason = why_ended(kept.started, look, self._context.boot_id, lines)
        self._life = life
        log_grew_at = await self._watch.log_grew_at()
        starting = life is Life.NONE and self.placement.wanted is Wanted.RUN
        refused: str | None = None
        blocked: str | None = None
        if starting and self._takes_in is not None:
            # It runs: it needs no program, no image and no free GPU.
            there, starting = self._context.take_in(self._takes_in), False
            refused = there if isinstance(there, str) else None
        elif starting:
            refused = why_refused(self.placement, self._context)
            if refused is None:
                refused, blocked = await why_no_model(self.placement, self._context)
            if blocked is None:
                # Nothing is awaited from here to the claim: two replicas must not both see a GPU free.
                blocked = why_blocked(self.placement, self._context, self._holder_of)
        kept = self._book.kept
        return Seen(
            phase=kept.phase,
            life=life,
            digest=kept.digest,
            started_at=self._watch.begun_at,
            proven=kept.proven or (monitor is not None and monitor.proven),
            unhealthy_since=monitor.unhealthy_since if monitor else None,
            silent_since=monitor.silent_since if monitor else None,
            frozen_since=monitor.frozen_since if monitor else None,
            log_grew_at=log_grew_at,
            canary_failures=monitor.canary_failures if monitor else 0,
            exit_reason=self._exit_reason,
            waiting_for=monitor.waiting_for if monitor else None,
            failures=self._book.failures,
            given_up=kept.given_up,
            gpu_lost=self._lost_gpu(),
            blocked=blocked,
            refused=refused,
            image=self._awaited() if starting and refused is None else None,
            phase_reason=kept.phase_reason,
        )

    def _awaited(self) -> ImageState | None:
        """The image and the model, whichever is still to come."""
        image, model = self._image.state(self.placement), self._model.state(self.placement)
        if image is None or model is None:
            return image or model
        worse = model if image.failed is None and model.failed is not None else image
        return replace(worse, words=f"{image.words}; {model.words}")

    def _lost_gpu(self) -> str | None:
        started, reading = self.started, self._context.gpus
        if started is None or not reading.lost:
            return None
        broken = [sample for sample in reading.samples if sample.gpu in reading.lost and sample.gpu in started.gpus]
        return f"gpu {broken[0].index} is lost: {broken[0].fault}" if broken else None

    @property
    def _takes_in(self) -> AdoptTarget | None:
        """The engine this replica begins with, until it has begun."""
        return self.placement.adopt if self._book.kept.digest is None else None

    # --- doing

    async def _begin_taken_in(self, target: AdoptTarget, digest: str) -> None:
        there = self._context.take_in(target)
        if isinstance(there, str):
            return  # it ended a moment ago; the next look says so
        log_file = self.log_file
        started = there.started.model_copy(update={"log_file": str(log_file)})
        told = f"{target.found} (pid {started.pid}) was taken in as it runs"
        await self._context.disk.do(replica_lane(self.replica), log_files.note, log_file, told)
        await self._book.keep(phase=Phase.CREATING, phase_reason=None, given_up=None)
        await self._key.keep(there.key)
        await self.take_in(started, digest)
        log.info("engine_taken_in", replica=self.replica, found=target.found, pid=started.pid)

    async def _follow_restart(self) -> None:
        """A container that was taken in goes on as this replica when Docker, or who made it, starts it again."""
        renewed = started_again(self.started, self._context)
        if renewed is None:
            return
        log.warning("container_started_again", replica=self.replica, pid=renewed.pid, container=renewed.container_id)
        await self._watch.end()
        self._exit_reason = None
        begins = self.phase in {Phase.CREATING, Phase.LOADING, Phase.READY}
        await self._book.note(
            started=renewed,
            phase=Phase.LOADING if begins else self.phase,
            phase_reason="its container was started again, not by Nebula",
            proven=False,
            restarts=self._book.kept.restarts + 1,
        )
        self._key.seal(renewed.engine_epoch)
        self._watch.begin(self.placement, renewed, self._key.key, proven=False)

    async def _start(self, digest: str) -> None:
        kept = self._book.kept
        self._exit_reason = None
        self._claiming = True
        self._context.problems.set(self._given_up, None)
        await self._book.keep(
            phase=Phase.CREATING,
            phase_reason=None,
            given_up=None,
            digest=digest,
            restarts=kept.restarts + (0 if kept.digest is None else 1),
        )
        try:
            image = await self._image.take(self.placement)
            paths = await self._model.take(self.placement)
            started = await start_engine(self.placement, self._key, image, self._context, paths)
        except (OSError, NebulaError) as error:
            self._start_failed, self._claiming = True, False
            self._exit_reason = f"it could not be started: {error}"
            log.error("engine_not_started", replica=self.replica, error=str(error))
            return
        await self._book.note(started=started, proven=False)
        self._image.let_go()
        self._model.let_go()
        self._claiming = False
        self._watch.begin(self.placement, started, self._key.key, proven=False)
        log.info(
            "engine_started",
            replica=self.replica,
            engine=self.placement.spec.engine,
            pid=started.pid,
            port=started.port,
            gpus=list(self.placement.gpus),
            engine_epoch=started.engine_epoch,
        )

    async def _stop(self, action: Action, digest: str) -> float:
        started = self.started
        lines = await failure_log(started, self._context) if action.failure else ()
        ready_for = self._watch.ready_for()
        if started is not None:
            log.info("engine_stopping", replica=self.replica, pid=started.pid, reason=action.reason)
            if action.failure and self._life is Life.RUNNING:
                action = await self._with_evidence(action, started)
            said = {"failure_log": lines} if action.failure else {}
            await self._book.note(phase=self._while_stopping(action), phase_reason=_while_stopping(action), **said)
            # The monitor goes on until the engine is gone: the last figures are those of the drain.
            ended = await self._runtime_of(started).stop(started, term_seconds=self._context.settings.term_seconds)
            if not is_gone(self.replica, started, ended, self._context):
                return STUCK_SECONDS if ended.survivors else LOOK_SECONDS
        await self._watch.end()
        self._context.ports.release(self.replica)
        self._start_failed = False
        # In this order on the disk; what became of it is told at once.
        await asyncio.gather(
            self._forget_key(),
            self._enter(action, digest, lines, ready_for=ready_for, started=None, proven=False),
        )
        return 0.0

    async def _forget_key(self) -> None:
        """A disk that hangs removes it when it answers again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(NOTE_SECONDS):
                await self._key.forget()

    async def _with_evidence(self, action: Action, started: Started) -> Action:
        """A running engine that is to be ended as failed hangs: what can be learned of it is kept first, and named."""
        reason, known = action.reason or "it hangs", self._book.kept.evidence
        if known is None or started.engine_epoch not in known:
            # Out of routing at once; it has failed when its evidence can be told along with it.
            phase = Phase.LOADING if self.phase is Phase.READY else self.phase
            await self._book.note(phase=phase, phase_reason=f"{reason}; gathering evidence")
            known = await gather_evidence(self.placement, started, self._watch.monitor, reason, self._context)
            await self._book.note(evidence=known)
        return action if known is None else replace(action, reason=f"{reason} (evidence: {known})")

    def _while_stopping(self, action: Action) -> Phase:
        """No new request may come to an engine that is being ended, whatever its placement says."""
        if action.phase is Phase.FAILED:
            return first_step(self.phase, Phase.FAILED)
        leaving = self.phase is Phase.READY and self.placement.wanted is Wanted.RUN
        return Phase.LOADING if leaving else self.phase

    async def _enter(
        self, action: Action, digest: str, lines: tuple[str, ...] = (), *, ready_for: float | None, **changes: object
    ) -> None:
        """Takes the phase of an action, and counts a failure."""
        failure = self._book.failed(digest, action.reason, lines, ready_for=ready_for) if action.failure else {}
        if action.failure and self._book.failures.spent(self._context.clock.monotonic()):
            self._context.problems.set(self._given_up, given_up(self.replica, action.reason))
        await self._book.note(phase=action.phase, phase_reason=action.reason, **(failure | self._learned() | changes))
        if action.phase in {Phase.STOPPED, Phase.PENDING}:
            self._context.problems.set(self._given_up, None)
        if action.phase is Phase.READY:
            log.info("replica_ready", replica=self.replica, load_seconds=self._book.kept.load_seconds)

    async def _settle(self, action: Action) -> None:
        """Nothing to do but to write down what was learned."""
        changes = self._learned()
        if action.reason != self._book.kept.phase_reason:
            changes["phase_reason"] = action.reason
        if changes:
            await self._book.note(**changes)

    def _learned(self) -> dict[str, object]:
        """What the monitor found out and the disk does not know yet."""
        return {} if self._book.kept.proven else self._watch.learned()

    async def _housekeeping(self, now: float) -> None:
        started = self.started
        if started is None:
            return
        # The log of a container has a writer here, who keeps it short.
        if started.container_id is None and now - self._shortened_at >= SHORTEN_SECONDS:
            self._shortened_at = now
            with suppress(DiskSilent):
                await self._context.disk.look(SHORTEN_WAIT_SECONDS, log_files.shorten, Path(started.log_file))
        if self._book.kept.proven and now - self._shm_at >= SHM_SECONDS and started.runtime == "process":
            self._shm_at = now
            await self._context.processes.remember_shared_memory(started)

    # --- small parts

    def _runtime_of(self, started: Started) -> Runtime:
        return self._context.runtimes[started.runtime]

    async def _rest(self, seconds: float) -> None:
        """Until somebody calls, the engine ends, or the time is over."""
        if seconds <= 0 or self._wake.is_set():
            await asyncio.sleep(0)
            return
        waits: set[asyncio.Task[object]] = {asyncio.create_task(self._woken())}
        started = self.started
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


def _while_stopping(action: Action) -> str | None:
    if action.failure:
        return action.reason
    return "stopping" if action.reason is None else f"stopping: {action.reason}"
