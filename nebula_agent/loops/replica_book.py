"""The book of one replica: what is known of it, on disk before it matters, so that an agent that returns goes on from there.

The signed order is written before it is obeyed, a start as soon as it has a pid, readiness as soon as it is proven (so that
an adopted engine is routable at once).
"""

import asyncio

import structlog

from nebula_agent.adapters.node_files import KeptReplica
from nebula_agent.decisions.backoff import Failures
from nebula_agent.loops.context import Context, replica_lane

log = structlog.get_logger(__name__)

#: A note waits so long for a disk; what comes of it does not depend on it.
NOTE_SECONDS = 2.0


class ReplicaBook:
    """One writer: the replica's owner. Times in memory are monotonic, on disk unix seconds."""

    def __init__(self, kept: KeptReplica, context: Context) -> None:
        now, wall = context.clock.monotonic(), context.clock.wall()
        self.kept = kept
        #: Since when it is in its phase, as this agent saw it.
        self.since = now
        self.failures = Failures(kept.failures, kept.in_a_row).shifted(now - wall, latest=now)
        self._context = context

    @property
    def replica(self) -> str:
        return self.kept.replica

    async def keep(self, **changes: object) -> None:
        """Changes what is known, and has it on disk when it returns; tells the reporter. Raises OSError."""
        writing = self._change(changes)
        if writing is not None:
            await writing

    async def note(self, **changes: object) -> None:
        """As `keep`, but goes on after a while without a disk that hangs: for what only tells what was seen or done.

        An agent that is killed meanwhile finds the book as it was before, and sees the same anew. Raises OSError.
        """
        writing = self._change(changes)
        if writing is None:
            return
        await asyncio.wait({writing}, timeout=NOTE_SECONDS)
        if writing.done():
            writing.result()
        else:
            log.warning("replica_not_written_yet", replica=self.replica, phase=self.kept.phase.value)
            writing.add_done_callback(self._written_late)

    def _written_late(self, writing: asyncio.Future[None]) -> None:
        error = None if writing.cancelled() else writing.exception()
        if error is not None:
            log.error("replica_not_written", replica=self.replica, error=str(error))

    def _change(self, changes: dict[str, object]) -> asyncio.Future[None] | None:
        former = self.kept
        kept = former.model_copy(update=changes)
        if kept == former:
            return None
        self.kept = kept
        if kept.phase is not former.phase:
            self.since = self._context.clock.monotonic()
            log.info(
                "replica_phase",
                replica=self.replica,
                phase=kept.phase.value,
                former=former.phase.value,
                reason=kept.phase_reason,
            )
        self._context.changed()
        # Orders come from another task: in one lane the newest state is what stays.
        return self._context.disk.begin(replica_lane(self.replica), self._context.files.keep_replica, kept)

    def failed(
        self, digest: str, reason: str | None, lines: tuple[str, ...], *, ready_for: float | None
    ) -> dict[str, object]:
        """Counts a failure of the launch with this digest; answers what is to be kept of it.

        `ready_for` is how long the start had been ready, None when it never was; `lines` are the last of its log.
        """
        clock = self._context.clock
        now, wall = clock.monotonic(), clock.wall()
        self.failures = self.failures.failed(now, ready_for=ready_for)
        given_up = digest if self.failures.spent(now) else self.kept.given_up
        log.error(
            "replica_failed",
            replica=self.replica,
            reason=reason,
            failures=len(self.failures.times),
            given_up=given_up is not None,
        )
        first = {"first_failure_reason": reason, "first_failure_log": lines} if self.failures.in_a_row == 1 else {}
        return {
            **first,
            "failure_log": lines,
            "given_up": given_up,
            "failures": tuple(at + wall - now for at in self.failures.times),
            "in_a_row": self.failures.in_a_row,
        }
