"""`/events` and `/audit`: what happened, and who did it."""

from collections.abc import Sequence
from typing import Annotated, Protocol

from fastapi import Header, Query
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.event import Audit, Event
from nebula_core.records.views import Page
from nebula_proxy.control.answers import page_answer, stream_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calls, Operation

ENTRY_ID = r"^[0-9]{1,20}-[0-9]{1,20}$"

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(pattern=ENTRY_ID, description="`next` of the page before: older entries.")]
After = Annotated[str | None, Query(pattern=ENTRY_ID, description="Only entries after this id.")]
LastSeen = Annotated[str | None, Header(alias="last-event-id", pattern=ENTRY_ID)]


class _Entry(Protocol):
    @property
    def id(self) -> str | None: ...


class Journal:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "GET",
                "/events",
                self.events,
                Role.VIEWER,
                "What happened; `follow=1` streams (event `event`)",
                Page[Event],
            ),
            Operation(
                "GET",
                "/audit",
                self.audit,
                Role.VIEWER,
                "Who did what; `follow=1` streams (event `audit`)",
                Page[Audit],
            ),
        )

    async def events(
        self,
        principal: Calls,
        follow: bool = False,
        limit: Limit = 100,
        cursor: Cursor = None,
        after: After = None,
        seen: LastSeen = None,
    ) -> Response:
        """Pages go back in time from the newest; within a page the oldest comes first."""
        if follow:
            chunks = self._desk.follower.events(seen or after)
            return stream_answer(chunks, self._desk.still_allowed(principal))
        entries = await self._desk.store.read_events(after, limit, cursor)
        return page_answer(entries, _older(entries, limit, after))

    async def audit(
        self,
        principal: Calls,
        follow: bool = False,
        limit: Limit = 100,
        cursor: Cursor = None,
        after: After = None,
        seen: LastSeen = None,
    ) -> Response:
        if follow:
            chunks = self._desk.follower.audit(seen or after)
            return stream_answer(chunks, self._desk.still_allowed(principal))
        entries = await self._desk.store.read_audit(after, limit, cursor)
        return page_answer(entries, _older(entries, limit, after))


def _older(entries: Sequence[_Entry], limit: int, after: str | None) -> str | None:
    """The cursor of the page before this one, when there may be one."""
    return entries[0].id if after is None and len(entries) == limit else None
