"""What a data worker keeps on disk of the store, so that it routes when it starts and the store is silent.

One file of JSON lines: a head (schema, incarnation, revision, when the store last answered), then a record per line:
deployments, placements and keys, and of each node what a proxy reads of its report. Nothing in it is a secret: of API keys
there is a hash, keys of engines are sealed, figures and names of other proxies are not in it. Mode 0600 all the same.

It is a memory, not an authority. What is read from it stands in the place of a snapshot that the store gave some time ago: whatever
the store says replaces it, an empty store does not (absence is no order).
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from nebula_core.errors import SettingsError
from nebula_core.records.access import ApiKey
from nebula_core.records.base import Record, frozen_map
from nebula_core.records.deployment import Deployment
from nebula_core.records.placement import Placement
from nebula_core.records.report import RoutingReport
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.security.files import read_secret
from nebula_core.store.reports import Breath

FILE_NAME: Final = "routing-snapshot.jsonl"
#: Raised when older programs could not read it; such a file is as good as none.
SCHEMA: Final = 1

_DURABLE: Final[Mapping[str, tuple[str, type[Record]]]] = {
    "deployment": ("deployments", Deployment),
    "placement": ("placements", Placement),
    "key": ("keys", ApiKey),
}
_NODE: Final = "node"


@dataclass(frozen=True, slots=True)
class Kept:
    snapshot: ClusterSnapshot
    nodes: tuple[RoutingReport, ...]
    #: Unix seconds of the store's last answer.
    at: float


class _Head(msgspec.Struct):
    schema: int
    incarnation: str
    revision: int
    at: float
    #: Lines that follow: a file that was cut short is none.
    lines: int


class _Line(msgspec.Struct):
    kind: str
    id: str
    value: msgspec.Raw


async def written(snapshot: ClusterSnapshot, nodes: Iterable[RoutingReport], at: float) -> bytes:
    """The file's content; lets the loop breathe meanwhile."""
    lines = [line async for line in _lines(snapshot, nodes)]
    head = {
        "schema": SCHEMA,
        "incarnation": snapshot.incarnation,
        "revision": snapshot.revision,
        "at": at,
        "lines": len(lines),
    }
    return "\n".join((json.dumps(head), *lines, "")).encode()


async def _lines(snapshot: ClusterSnapshot, nodes: Iterable[RoutingReport]) -> AsyncIterator[str]:
    breath = Breath()
    for kind, (field, _) in _DURABLE.items():
        for record_id, record in getattr(snapshot, field).items():
            yield _line(kind, record_id, record)
            await breath()
    for report in nodes:
        yield _line(_NODE, report.node, report)
        await breath()


def _line(kind: str, record_id: str, record: Record) -> str:
    return f'{{"kind":"{kind}","id":{json.dumps(record_id)},"value":{record.to_json()}}}'


def read(path: Path) -> Kept | None:
    """None when there is no such file. Raises ValueError, saying why, when it cannot be used."""
    if not path.exists():
        return None
    try:
        head, *lines = read_secret(path).splitlines()
        facts = msgspec.json.decode(head, type=_Head)
    except (SettingsError, ValueError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from error
    if facts.schema != SCHEMA:
        raise ValueError(f"it has schema {facts.schema}, this program reads {SCHEMA}")
    if facts.lines != len(lines):
        raise ValueError(f"it has {len(lines)} of {facts.lines} lines")
    parts: dict[str, dict[str, object]] = {field: {} for field, _ in _DURABLE.values()}
    nodes: list[RoutingReport] = []
    decode = msgspec.json.Decoder(_Line).decode
    for raw in lines:
        try:
            line = decode(raw)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error
        value = bytes(line.value)
        if line.kind == _NODE:
            nodes.append(RoutingReport.from_json(value))
        elif (known := _DURABLE.get(line.kind)) is not None:
            field, record = known
            parts[field][line.id] = record.from_json(value)
    updates: dict[str, Any] = {field: frozen_map(found) for field, found in parts.items()}
    snapshot = replace(ClusterSnapshot(), incarnation=facts.incarnation, revision=facts.revision, **updates)
    return Kept(snapshot, tuple(nodes), facts.at)
