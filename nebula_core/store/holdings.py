"""What nodes hold while the store is in doubt: the signed orders they obey, shown to whoever must write them back."""

from nebula_core.records.store_memory import HeldOrders
from nebula_core.store import keys
from nebula_core.store.line import Line

#: Shown anew by the agent several times in this time.
HELD_SECONDS = 30.0
_SLICE = 50


class Holdings:
    _commands: Line

    async def show_held(self, held: HeldOrders, ttl_seconds: float = HELD_SECONDS) -> None:
        await self._commands.ask("SET", keys.held(held.node), held.to_json(), "PX", max(1, round(ttl_seconds * 1000)))

    async def read_held(self) -> dict[str, HeldOrders]:
        """By node. What cannot be read is left out: its node counts as one that shows nothing."""
        found_names: set[str] = set()
        cursor: int | str = 0
        while True:
            cursor, page = await self._commands.ask("SCAN", cursor, "MATCH", f"{keys.HELD}*", "COUNT", 1000)
            found_names.update(page)
            if int(cursor) == 0:
                break
        names = sorted(found_names)
        found: dict[str, HeldOrders] = {}
        for start in range(0, len(names), _SLICE):
            some = names[start : start + _SLICE]
            for name, raw in zip(some, await self._commands.ask("MGET", *some), strict=True):
                try:
                    held = HeldOrders.from_json(raw or "")
                except ValueError:
                    continue
                # A node speaks for itself only.
                if keys.held(held.node) == name:
                    found[held.node] = held
        return found
