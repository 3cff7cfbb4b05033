"""The planner's lease and its fence.

A lease alone is a hint: a leader that was frozen for eight seconds wakes up believing in it. So each grant comes
with an epoch that only rises, and every write of placements names it: the script refuses an epoch below the highest
ever granted, whatever the lease says, and one that the lease says is somebody else's (Redis killed within a second of a
grant may forget it and grant the same number again). Agents keep the highest epoch they obeyed, which outlives the store itself; a
leader therefore acquires `above` what they report.
"""

from collections.abc import Sequence
from typing import NamedTuple

from nebula_core.errors import Fenced
from nebula_core.records.event import ChangeKind
from nebula_core.records.placement import SignedPlacement
from nebula_core.store import keys
from nebula_core.store.line import Argument, Line, Script

_ACQUIRE = Script("acquire_lease")
_RENEW = Script("renew_lease")
_RELEASE = Script("release_lease")
_APPLY = Script("apply_placements")


class Leader(NamedTuple):
    holder: str
    epoch: int


class Leadership:
    _commands: Line
    _lease: Line

    async def acquire_lease(self, holder: str, ttl_seconds: float, *, above: int = 0) -> int | None:
        """A new epoch, higher than every one before and than `above`; None while somebody else leads.

        `holder` names one process (not one machine): it may acquire again and then has a newer epoch.
        """
        epoch = await self._lease.run(_ACQUIRE, [keys.LEASE, keys.EPOCH], [holder, _milliseconds(ttl_seconds), above])
        return None if epoch is None else int(epoch)

    async def renew_lease(self, holder: str, epoch: int, ttl_seconds: float) -> bool:
        """Whether this leader still leads. On False, or when the answer does not come in time: stop writing."""
        return bool(await self._lease.run(_RENEW, [keys.LEASE], [f"{epoch}:{holder}", _milliseconds(ttl_seconds)]))

    async def release_lease(self, holder: str) -> bool:
        return bool(await self._lease.run(_RELEASE, [keys.LEASE], [holder]))

    async def leader(self) -> Leader | None:
        """Who leads at this moment."""
        held = await self._commands.ask("GET", keys.LEASE)
        if held is None:
            return None
        epoch, _, holder = held.partition(":")
        return Leader(holder, int(epoch))

    async def apply_placements(
        self, epoch: int, changes: Sequence[tuple[str, SignedPlacement | None]], *, holder: str | None = None
    ) -> int:
        """Writes (None: removes) placements in one step and answers the revision. Raises Fenced: stop being leader.

        `holder` is who acquired this epoch; None where nobody leads (tests, tools).
        """
        arguments: list[Argument] = [epoch, keys.CHANGES_KEPT, holder or ""]
        for replica, signed in changes:
            arguments += [replica, "remove", ""] if signed is None else [replica, "put", signed.to_json()]
        outcome, number = await self._commands.run(
            _APPLY, [keys.DURABLE[ChangeKind.PLACEMENT], keys.REVISION, keys.CHANGES, keys.EPOCH, keys.LEASE], arguments
        )
        if outcome == "fenced":
            raise Fenced(f"epoch {number} was granted to another leader, this one is {epoch}")
        return int(number)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
