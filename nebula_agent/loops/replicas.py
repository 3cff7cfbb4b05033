"""All replicas of this node: their owners, one each, and who holds what."""

import asyncio
from collections.abc import Mapping

import structlog

from nebula_agent.adapters.gpus import Holder
from nebula_agent.adapters.node_files import KeptReplica
from nebula_agent.loops.context import Context, replica_lane
from nebula_agent.loops.replica_owner import ReplicaOwner
from nebula_core.records.placement import Placement, SignedPlacement
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.runtime.tasks import TaskSupervisor

log = structlog.get_logger(__name__)


class Replicas:
    """Owners by replica id; each runs in a task of its own, restarted when it raises."""

    def __init__(self, context: Context, supervisor: TaskSupervisor) -> None:
        self._context = context
        self._supervisor = supervisor
        self._owners: dict[str, ReplicaOwner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def owners(self) -> Mapping[str, ReplicaOwner]:
        return self._owners

    async def adopt_all(self) -> None:
        """Finds the replicas kept on disk, with their engines, and ends what is ours and known to nobody."""
        kept = await self._context.disk.do("replicas", self._context.files.all_replicas)
        for replica, record in kept.items():
            try:
                placement = Placement.from_json(record.placement.payload)
            except ValueError as error:
                log.error("kept_placement_unreadable", replica=replica, error=str(error)[:200])
                continue
            owner = self._make(record, placement)
            await owner.adopt()
        epochs = await self.end_strays()
        await self._context.processes.forget_others(epochs)

    async def end_strays(self) -> set[str]:
        """Ends processes that are ours and belong to no start that is written down; the epochs of those that are.

        Not while a start is under way: it is written down only when it has a pid.
        """
        epochs = {owner.started.engine_epoch for owner in self._owners.values() if owner.started is not None}
        if any(owner.starting for owner in self._owners.values()):
            return epochs
        for stray in await self._context.processes.strays(epochs):
            log.warning("stray_engine", pid=stray.pid, marker=stray.marker, action_taken="stopped")
            await self._context.processes.stop(stray, term_seconds=1.0)
        return epochs

    def start_all(self) -> None:
        for owner in self._owners.values():
            self._start(owner)

    async def obey(self, placement: Placement, signed: SignedPlacement) -> None:
        """A verified order; its replica gets an owner if it has none."""
        owner = self._owners.get(placement.replica)
        if owner is not None:
            await owner.obey(placement, signed)
            return
        record = KeptReplica(replica=placement.replica, placement=signed)
        await self._context.disk.do(replica_lane(record.replica), self._context.files.keep_replica, record)
        self._start(self._make(record, placement))
        self._context.changed()

    async def forget(self, replica: str) -> bool:
        """Its placement is gone: forgets it once it is stopped. Absence stops nothing."""
        owner = self._owners.get(replica)
        if owner is None or owner.phase is not Phase.STOPPED or owner.started is not None:
            return False
        del self._owners[replica]
        task = self._tasks.pop(replica, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._context.disk.do(replica_lane(replica), self._context.files.forget_replica, replica)
        self._context.changed()
        log.info("replica_forgotten", replica=replica)
        return True

    async def stop_all(self, term_seconds: float) -> None:
        """Ends every engine, all at the same time."""
        await self._end_tasks()
        await asyncio.gather(*(owner.stop_for_good(term_seconds) for owner in self._owners.values()))

    async def leave_all(self) -> None:
        """Leaves every engine running, for the next agent."""
        await self._end_tasks()
        for owner in self._owners.values():
            owner.let_go()

    def pinned_models(self) -> frozenset[str]:
        """Entries of the model cache that a replica runs, or would be started from again."""
        return frozenset(name for owner in self.owners.values() for name in owner.pinned_models)

    def statuses(self, now: float) -> tuple[ReplicaStatus, ...]:
        return tuple(self._owners[replica].status(now) for replica in sorted(self._owners))

    def holder_of(self, gpu: str, without: str) -> str | None:
        """Another replica whose engine may still hold this GPU."""
        return next(
            (owner.replica for owner in self._owners.values() if owner.replica != without and gpu in owner.held_gpus),
            None,
        )

    def holders(self) -> dict[str, Holder]:
        """Who runs on which GPU."""
        found: dict[str, Holder] = {}
        for owner in self._owners.values():
            started, monitor = owner.started, owner.monitor
            if started is None:
                continue
            for gpu in started.gpus:
                found[gpu] = Holder(
                    owner.replica,
                    started.pid,
                    len(started.gpus),
                    monitor.sample if monitor is not None else None,
                )
        return found

    def _make(self, record: KeptReplica, placement: Placement) -> ReplicaOwner:
        owner = ReplicaOwner(record, placement, self._context, self.holder_of)
        self._owners[record.replica] = owner
        return owner

    def _start(self, owner: ReplicaOwner) -> None:
        self._tasks[owner.replica] = self._supervisor.eternal(f"replica:{owner.replica}", owner.run)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
