"""Durable records: written by compare-and-set on their generation, each change with a revision of its own."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from uuid import uuid4

from nebula_core.errors import Conflict, Fenced, StoreUnfit
from nebula_core.records.access import ApiKey
from nebula_core.records.base import Record
from nebula_core.records.deployment import Deployment
from nebula_core.records.event import ChangeKind
from nebula_core.records.node import Node, NodeIntent
from nebula_core.records.store_memory import StoreDoubt
from nebula_core.store import keys
from nebula_core.store.fitness import check_info
from nebula_core.store.line import Line, Script

_CHANGE = Script("change")
_DOUBT = Script("doubt")
_REBUILD = Script("rebuild")

#: What may be put; placements go through the leader's fence instead (`leadership`).
WRITABLE: Mapping[ChangeKind, type[Record]] = MappingProxyType(
    {
        ChangeKind.DEPLOYMENT: Deployment,
        ChangeKind.NODE: Node,
        ChangeKind.INTENT: NodeIntent,
        ChangeKind.KEY: ApiKey,
    }
)
#: What a rebuilt store has anew; in the order of the script's keys.
REPLACED = (ChangeKind.DEPLOYMENT, ChangeKind.INTENT, ChangeKind.PLACEMENT, ChangeKind.KEY)
#: Records travel without the fields that hold their default; this is the generation of one that says none.
_UNSAID_GENERATION: Mapping[ChangeKind, int] = MappingProxyType({ChangeKind.KEY: 1})


class Durable:
    """Who owns the store, and what must not be lost."""

    _commands: Line

    async def check(self) -> None:
        """Raises StoreUnavailable, or StoreUnfit with the line to change: version, AOF, eviction, role, schema."""
        info, meta = await self._commands.ask_all([["INFO"], ["HGETALL", keys.META]])
        check_info(info, meta)

    async def ensure_meta(self) -> str:
        """The store's incarnation, minted by the first process that meets an empty one."""
        replies = await self._commands.ask_all(meta_commands(), atomic=True)
        return incarnation_of(replies[-1])

    async def settle(self) -> None:
        """Says that an emptied store is as it should be: watchers take it from now on as the whole truth."""
        await self._commands.ask_all(
            [["HSET", keys.META, "settled", "1"], ["HDEL", keys.META, "doubt", "seen"]], atomic=True
        )

    async def say_doubt(self, doubt: StoreDoubt, incarnation: str, seen: int) -> bool:
        """Says in the store that somebody has seen more of it, up to revision `seen`; False: it was settled meanwhile."""
        said = await self._commands.run(_DOUBT, [keys.META, keys.REVISION], [incarnation, doubt.value, seen])
        return bool(said)

    async def meta(self) -> dict[str, str]:
        found: dict[str, str] = await self._commands.ask("HGETALL", keys.META)
        return found

    async def rebuild(
        self,
        records: Mapping[ChangeKind, Mapping[str, Record]],
        *,
        incarnation: str,
        at_revision: int,
        epoch: int,
        above: int,
    ) -> int:
        """Gives a store in doubt its memory anew, in one step, and settles it; answers its revision, higher than `above`.

        Deployments, intents, placements and keys are replaced by these, nodes only completed. Raises Conflict when
        the store has moved on from `at_revision`, Fenced when another leader has a higher epoch.
        """
        arguments: list[str | int | float | bytes] = [incarnation, at_revision, epoch, above]
        for number, kind in enumerate((ChangeKind.NODE, *REPLACED)):
            for record_id, record in records.get(kind, {}).items():
                arguments += [number, record_id, record.to_json()]
        names = [keys.DURABLE[kind] for kind in (ChangeKind.NODE, *REPLACED)]
        outcome, number = await self._commands.run(_REBUILD, [keys.META, keys.REVISION, keys.EPOCH, *names], arguments)
        if outcome == "fenced":
            raise Fenced(f"epoch {number} was granted to another leader, this one is {epoch}")
        if outcome == "conflict":
            raise Conflict("the store was changed in the meantime", hint="Look at the plan again and repeat")
        return int(number)

    async def put(
        self, kind: ChangeKind, record_id: str, value: Record, *, expected_generation: int | None = None
    ) -> int:
        """Writes a record and answers the revision at which it stands.

        `expected_generation` is the one the writer has read: None asks for no check, 0 that there is none yet.
        Raises Conflict. Writing what stands there already changes nothing.
        """
        if not isinstance(value, WRITABLE.get(kind, ())):
            raise TypeError(f"{type(value).__name__} is not written as {kind.value} by put()")
        return await self._change(kind, record_id, "put", value.to_json(), expected_generation)

    async def remove(self, kind: ChangeKind, record_id: str, *, expected_generation: int | None = None) -> int:
        """Removes a record and answers the revision; one that is gone already is no error. Raises Conflict."""
        if kind not in WRITABLE:
            raise TypeError(f"{kind.value} is not removed by remove(): use apply_placements()")
        return await self._change(kind, record_id, "remove", "", expected_generation)

    async def get(self, kind: ChangeKind, record_id: str) -> str | None:
        """The JSON of one record; of a placement its signed envelope."""
        value: str | None = await self._commands.ask("HGET", keys.DURABLE[kind], record_id)
        return value

    async def get_some(self, kind: ChangeKind, record_ids: Sequence[str]) -> dict[str, str]:
        """The JSON of those that are there, by id."""
        if not record_ids:
            return {}
        found = await self._commands.ask("HMGET", keys.DURABLE[kind], *record_ids)
        return {name: value for name, value in zip(record_ids, found, strict=True) if value is not None}

    async def get_all(self, kind: ChangeKind) -> dict[str, str]:
        """The JSON of every record of a kind, by id."""
        found: dict[str, str] = await self._commands.ask("HGETALL", keys.DURABLE[kind])
        return found

    async def revision(self) -> int:
        return int(await self._commands.ask("GET", keys.REVISION) or 0)

    async def _change(
        self, kind: ChangeKind, record_id: str, operation: str, value: str, expected_generation: int | None
    ) -> int:
        outcome, number = await self._commands.run(
            _CHANGE,
            [keys.DURABLE[kind], keys.REVISION, keys.CHANGES],
            [
                kind.value,
                record_id,
                operation,
                value,
                "" if expected_generation is None else expected_generation,
                _UNSAID_GENERATION.get(kind, 0),
                keys.CHANGES_KEPT,
            ],
        )
        if outcome == "conflict":
            found = {-1: "does not exist", -2: "cannot be read"}.get(number, f"is at generation {number}")
            wanted = (
                "none was expected" if expected_generation == 0 else f"generation {expected_generation} was expected"
            )
            raise Conflict(f"{kind.value} {record_id!r} {found}, {wanted}", hint="Read it again and repeat the change")
        return int(number)


def meta_commands() -> list[list[str | int]]:
    """Mint what is missing of the meta record and read it."""
    return [
        ["HSETNX", keys.META, "incarnation", uuid4().hex],
        ["HSETNX", keys.META, "schema", keys.SCHEMA],
        ["HSETNX", keys.META, "oldest_reader", keys.OLDEST_READER],
        ["HGETALL", keys.META],
    ]


def incarnation_of(meta: Mapping[str, str]) -> str:
    found = meta.get("incarnation")
    if not found:
        raise StoreUnfit("the store's meta record has no incarnation", hint=f"Look at the key {keys.META}")
    return found
