"""What happened: events for operators, the audit chain, and the sampled requests that `why` explains."""

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import structlog

from nebula_core.errors import StoreUnavailable
from nebula_core.records.decision import DecisionRecord
from nebula_core.records.event import Audit, Event
from nebula_core.security.chain import chained
from nebula_core.store import keys
from nebula_core.store.line import Line, Script

log = structlog.get_logger(__name__)

_APPEND_AUDIT = Script("append_audit")
_AUDIT_ATTEMPTS = 20
_FOLLOW_BLOCK_SECONDS = 1.0
_SEARCHED_AT_ONCE = 100

Entry = tuple[str, dict[str, str]]
Logged = TypeVar("Logged", Event, Audit, DecisionRecord)


class Journal:
    _commands: Line
    _waiting: Line

    async def append_event(self, event: Event) -> str:
        """The id the store gave."""
        return str(await self._append(keys.EVENTS, keys.EVENTS_KEPT, event.to_json()))

    async def read_events(self, after: str | None = None, count: int = 100, before: str | None = None) -> list[Event]:
        """Oldest first: those after an id, or else the newest `count` (before an id)."""
        return _decoded(Event, await self._read(keys.EVENTS, after, count, before))

    async def follow_events(self, after: str | None = None) -> AsyncIterator[Event]:
        """Every event after an id (None: from now on), for ever. Raises StoreUnavailable; go on after the last id."""
        cursor = after if after is not None else await self._last_id(keys.EVENTS)
        while True:
            entries = await self._wait(keys.EVENTS, cursor, 100, _FOLLOW_BLOCK_SECONDS)
            for event in _decoded(Event, entries):
                yield event
            if entries:
                cursor = entries[-1][0]

    async def append_audit(self, audit: Audit) -> Audit:
        """Chains the entry to the last one and appends it; answers it as it stands."""
        for _ in range(_AUDIT_ATTEMPTS):
            last = await self._commands.ask("XREVRANGE", keys.AUDIT, "+", "-", "COUNT", 1)
            last_id, previous = (last[0][0], Audit.from_json(last[0][1]["json"]).digest) if last else ("", "")
            entry = chained(previous, audit)
            given = await self._commands.run(_APPEND_AUDIT, [keys.AUDIT], [last_id, entry.to_json(), keys.AUDIT_KEPT])
            if given is not None:
                return entry.model_copy(update={"id": given})
        raise StoreUnavailable("the audit log is written by too many at once", hint="Repeat the call")

    async def read_audit(self, after: str | None = None, count: int = 100, before: str | None = None) -> list[Audit]:
        """Oldest first, as `read_events`."""
        return _decoded(Audit, await self._read(keys.AUDIT, after, count, before))

    async def append_requests(self, records: Sequence[DecisionRecord]) -> None:
        """Sampled requests, in one round trip."""
        if records:
            await self._commands.ask_all(
                [
                    ["XADD", keys.REQUESTS, "MAXLEN", "~", keys.REQUESTS_KEPT, "*", "id", one.id, "json", one.to_json()]
                    for one in records
                ]
            )

    async def read_requests(self, count: int = 100, before: str | None = None) -> list[DecisionRecord]:
        """The newest `count` sampled requests (before an id), oldest first."""
        return _decoded(DecisionRecord, await self._read(keys.REQUESTS, None, count, before), "entry")

    async def find_request(self, request_id: str) -> DecisionRecord | None:
        """The newest record of a request, None when it was not sampled or is forgotten.

        The stream is searched from its end, in slices, without decoding what is not asked for: a person waits for it,
        0.1 s for all of the ten thousand.
        """
        before: str | None = None
        while True:
            entries = await self._read(keys.REQUESTS, None, _SEARCHED_AT_ONCE, before)
            for entry in reversed(entries):
                if entry[1].get("id") == request_id:
                    found = _decoded(DecisionRecord, [entry], "entry")
                    return found[0] if found else None
            if len(entries) < _SEARCHED_AT_ONCE:
                return None
            before = entries[0][0]

    async def _append(self, stream: str, kept: int, json: str) -> str:
        given: str = await self._commands.ask("XADD", stream, "MAXLEN", "~", kept, "*", "json", json)
        return given

    async def _last_id(self, stream: str) -> str:
        last: list[Entry] = await self._commands.ask("XREVRANGE", stream, "+", "-", "COUNT", 1)
        return last[0][0] if last else "0-0"

    async def _read(self, stream: str, after: str | None, count: int, before: str | None) -> list[Entry]:
        if after is not None:
            end = "+" if before is None else f"({before}"
            forward: list[Entry] = await self._commands.ask("XRANGE", stream, f"({after}", end, "COUNT", count)
            return forward
        end = "+" if before is None else f"({before}"
        backward: list[Entry] = await self._commands.ask("XREVRANGE", stream, end, "-", "COUNT", count)
        return backward[::-1]

    async def _wait(self, stream: str, cursor: str, count: int, seconds: float) -> list[Entry]:
        reply = await self._waiting.ask(
            "XREAD", "COUNT", count, "BLOCK", max(1, round(seconds * 1000)), "STREAMS", stream, cursor, patience=seconds
        )
        return reply[0][1] if reply else []


def _decoded(kind: type[Logged], entries: list[Entry], id_field: str = "id") -> list[Logged]:
    """The records with their ids; one that cannot be read is left out and logged."""
    found: list[Logged] = []
    for entry_id, fields in entries:
        try:
            record = kind.from_json(fields.get("json", ""))
        except ValueError as error:
            log.warning("journal_entry_unreadable", kind=kind.__name__, id=entry_id, error=type(error).__name__)
        else:
            found.append(record.model_copy(update={id_field: entry_id}))
    return found
