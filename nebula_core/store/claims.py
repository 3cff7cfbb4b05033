"""One agent per node: a second one that starts under the same name is told who holds it."""

from typing import NamedTuple

from nebula_core.store import keys
from nebula_core.store.line import Line, Script

_CLAIM = Script("claim_node")
_RELEASE = Script("release_node")
CLAIM_SECONDS = 10.0


class Claim(NamedTuple):
    """The agent process that holds a node's name."""

    boot_id: str
    pid: int


class Claims:
    _commands: Line

    async def claim_node(
        self,
        node: str,
        boot_id: str,
        pid: int,
        *,
        replacing: Claim | None = None,
        ttl_seconds: float = CLAIM_SECONDS,
    ) -> bool:
        """Claims the name for 10 s, or renews the claim; False while another agent holds it.

        `replacing` is a holder the caller knows to be dead (same boot, no such process): an agent that was killed
        need not wait for its own old claim.
        """
        former = "" if replacing is None else _claim(replacing.boot_id, replacing.pid)
        return bool(
            await self._commands.run(
                _CLAIM, [keys.agent(node)], [_claim(boot_id, pid), max(1, round(ttl_seconds * 1000)), former]
            )
        )

    async def node_holder(self, node: str) -> Claim | None:
        """Who holds the name now."""
        held = await self._commands.ask("GET", keys.agent(node))
        if held is None:
            return None
        boot_id, _, pid = held.rpartition(":")
        return Claim(boot_id, int(pid) if pid.isdecimal() else 0)

    async def release_node(self, node: str, boot_id: str, pid: int) -> bool:
        return bool(await self._commands.run(_RELEASE, [keys.agent(node)], [_claim(boot_id, pid)]))


def _claim(boot_id: str, pid: int) -> str:
    return f"{boot_id}:{pid}"
