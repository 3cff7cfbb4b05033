"""`/requests`: what is open in the proxies and what was recorded lately; why one went where it went; ending one."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from fastapi import Path, Query
from starlette.responses import Response

from nebula_core.records.access import Role
from nebula_core.records.decision import DecisionRecord
from nebula_core.records.inflight import OpenRequest
from nebula_core.records.views import PlanView, RequestsPage, RequestView
from nebula_proxy.control.actions import Call, Deed, Done, plan_view
from nebula_proxy.control.answers import record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Calls, Operation
from nebula_proxy.control.refusals import CallRefused
from nebula_proxy.control.resources.journal import ENTRY_ID

#: The newest records looked through when they are filtered: enough for a screen, not a search engine.
LOOKED_THROUGH = 1000

RequestId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Latest = Annotated[int, Query(ge=0, le=500, description="How many of those that have ended.")]
Open = Annotated[int, Query(ge=0, le=2000, description="How many of those that are open; the oldest first.")]
Cursor = Annotated[str | None, Query(pattern=ENTRY_ID, description="`next` of the page before: older ended ones.")]
State = Annotated[Literal["open", "ended"] | None, Query(description="Only these.")]
Name = Annotated[str | None, Query(max_length=128)]


class Requests:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        one = "/requests/{request_id}"
        return (
            Operation(
                "GET", "/requests", self.every, Role.VIEWER, "What is open now, and what ended lately", RequestsPage
            ),
            Operation("GET", one, self.one, Role.VIEWER, "Why one request went where it went", DecisionRecord),
            Operation("POST", f"{one}/cancel", self.cancel, Role.OPERATOR, "End a request that is open", PlanView),
        )

    async def every(
        self,
        principal: Calls,
        state: State = None,
        inflight: Open = 500,
        latest: Latest = 50,
        cursor: Cursor = None,
        model: Name = None,
        replica: Name = None,
        key: Name = None,
    ) -> Response:
        """First what is open, the oldest first; then recorded requests, the newest first."""

        def wanted(row: RequestView) -> bool:
            return (
                (model is None or row.model == model)
                and (replica is None or row.replica == replica)
                and (key is None or key in (row.key_id, row.key_name))
            )

        live = self._desk.live
        seen = await live.look(principal.name) if state != "ended" and cursor is None else None
        rows: list[RequestView] = []
        if seen is not None:
            found = [open_view(report.proxy, row) for report in seen.reports for row in report.rows]
            rows = sorted(filter(wanted, found), key=lambda row: -(row.age_seconds or 0.0))[:inflight]
        following = None
        if state != "open" and latest:
            narrowed = any(part is not None for part in (model, replica, key))
            count = LOOKED_THROUGH if narrowed else latest
            entries = await self._desk.store.read_requests(count, cursor)
            ended = [view for one in reversed(entries) if wanted(view := ended_view(one))][:latest]
            rows += ended
            if len(ended) == latest:
                following = ended[-1].entry
            elif len(entries) == count:
                following = entries[0].entry
        reports = () if seen is None else seen.reports
        page = RequestsPage(
            items=tuple(rows),
            next=following,
            inflight=sum(report.total for report in reports),
            waiting=sum(report.waiting for report in reports),
            prefill=sum(report.prefill for report in reports),
            streaming=sum(report.streaming for report in reports),
            running=sum(report.running for report in reports),
            stalled=sum(report.stalled for report in reports),
            shown=sum(len(report.rows) for report in reports),
            silent=() if seen is None else seen.silent,
        )
        return record_answer(page)

    async def one(self, principal: Calls, request_id: RequestId) -> Response:
        """An open one as it stands, else its record."""
        found = await self._desk.live.explain(request_id, principal.name)
        if found is None:
            found = await self._desk.store.find_request(request_id)
        if found is None:
            raise _unknown(request_id)
        return record_answer(found)

    async def cancel(self, request_id: RequestId, call: Calling) -> Response:
        """The client gets an error, the engine is told at once. One that has ended already is left as it is."""
        live = self._desk.live
        if call.dry_run:
            found = await live.explain(request_id, call.by)
            if found is None or found.status is not None:
                return record_answer(plan_view(call, await self._ended(request_id, found)))
            return record_answer(_ending(call, f"cancels {_words(found)}"))

        async def work() -> Done:
            found = await live.cancel(request_id, call.by)
            if found is None or found.status is not None:
                return Done(plan_view(call, await self._ended(request_id, found)))
            words = f"cancelled {_words(found)}"
            return Done(_ending(call, words), words)

        deed = Deed("request_cancelled", f"request/{request_id}", severity="warn")
        return record_answer(await self._desk.actions.perform(call, deed, work, PlanView))

    async def _ended(self, request_id: str, found: DecisionRecord | None) -> str:
        """That it has ended already: nothing is left to do. Raises CallRefused for one that nobody knows."""
        if found is None:
            found = await self._desk.store.find_request(request_id)
        if found is None:
            raise _unknown(request_id)
        return f"nothing to do: {request_id} has ended ({found.outcome})"


def open_view(proxy: str, row: OpenRequest) -> RequestView:
    return RequestView(
        id=row.id,
        proxy=proxy,
        state=row.phase,
        stalled=row.stalled,
        model=row.model,
        replica=row.replica,
        path=row.path,
        stream=row.stream,
        key_id=row.key_id,
        key_name=row.key_name,
        client=row.client,
        age_seconds=row.age_seconds,
        wait_seconds=row.wait_seconds,
        ttft_seconds=row.ttft_seconds,
        silent_seconds=row.silent_seconds,
        tokens=row.events if row.stream else None,
        tokens_per_second=_pace(row.events, row.age_seconds, row.ttft_seconds),
        sent_bytes=row.sent_bytes,
        request_bytes=row.request_bytes,
        attempts=row.attempts,
        resumes=row.resumes,
    )


def ended_view(record: DecisionRecord) -> RequestView:
    return RequestView(
        id=record.id,
        proxy=record.proxy,
        state="ended",
        outcome=record.outcome,
        status=record.status,
        model=record.model,
        replica=record.replica,
        path=record.path,
        stream=bool(record.stream),
        key_id=record.key_id,
        key_name=record.key_name,
        at=record.at,
        age_seconds=record.duration_seconds,
        wait_seconds=record.wait_seconds,
        ttft_seconds=record.ttft_seconds,
        prompt_tokens=record.prompt_tokens,
        tokens=record.completion_tokens,
        tokens_per_second=None if not record.tpot_seconds else 1.0 / record.tpot_seconds,
        sent_bytes=record.response_bytes,
        request_bytes=record.request_bytes,
        attempts=sum(attempt.replica is not None for attempt in record.attempts),
        resumes=record.resumes,
        kept_because=record.kept_because,
        entry=record.entry,
    )


def _pace(events: int, age: float, ttft: float | None) -> float | None:
    """Events per second since the first one."""
    if ttft is None or events < 2 or age - ttft < 0.05:
        return None
    return (events - 1) / (age - ttft)


def _ending(call: Call, summary: str) -> PlanView:
    return plan_view(call, summary).model_copy(update={"inflight_affected": 1})


def _words(record: DecisionRecord) -> str:
    parts: Iterable[str | None] = (
        record.model,
        f"on {record.replica}" if record.replica is not None else "not yet on a replica",
        None if record.key_name is None else f"key {record.key_name}",
        None if record.duration_seconds is None else f"open for {record.duration_seconds:.1f} s",
    )
    return f"{record.id} ({', '.join(part for part in parts if part)})"


def _unknown(request_id: str) -> CallRefused:
    return CallRefused(
        404,
        "request_not_found",
        f"no proxy has {request_id!r} open, and it left no record",
        hint="errors, retries, slow requests and a share of the rest are recorded (settings `records`)",
    )
