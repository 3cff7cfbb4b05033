"""Events as rows, newest first: what happened, who did it, did it work."""

from collections.abc import Iterable
from typing import Final

from nebula_core.records.event import Event
from nebula_tui.presenters.cells import Cell, Column, Row, Severity
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.text import TextLine, labelled, local_time

COLUMNS: Final = (
    Column("time", "TIME", 8),
    Column("sev", "SEV", 3, sortable=False),
    Column("kind", "KIND", 10, min_width=8),
    Column("actor", "ACTOR", 12, min_width=8, priority=3),
    Column("object", "OBJECT", 24, min_width=14),
    Column("what", "WHAT", 40, min_width=12, flex=True),
    Column("result", "RESULT", 8, min_width=6, priority=2),
)

BRIEF_COLUMNS: Final = (
    Column("time", "TIME", 8, sortable=False),
    Column("kind", "KIND", 8, min_width=6, sortable=False),
    Column("what", "WHAT", 26, min_width=10, flex=True, sortable=False),
)


def severity_of(event: Event) -> Severity:
    return Severity(event.severity)


def event_id(event: Event) -> str:
    return event.id or f"{event.at:.6f}/{event.kind}/{event.object}/{event.message}"


def rows(fleet: FleetState, events: Iterable[Event] | None = None) -> list[Row]:
    return [_row(event, fleet.utc_offset_seconds) for event in _newest_first(fleet, events)]


def _newest_first(fleet: FleetState, events: Iterable[Event] | None) -> list[Event]:
    return list(reversed(list(fleet.events if events is None else events)))


def _row(event: Event, offset: float) -> Row:
    severity = severity_of(event)
    return Row(
        event_id(event),
        (
            Cell(local_time(event.at, offset), Severity.DIM, order=event.at),
            Cell(severity.glyph, severity),
            Cell(event.kind, severity if severity is not Severity.INFO else Severity.NORMAL),
            Cell(event.actor),
            Cell(event.object),
            Cell(event.message),
            Cell(event.result, Severity.DIM),
        ),
    )


def brief_rows(fleet: FleetState, room: int) -> list[Row]:
    """The newest, for the overview: the object's name goes into the text."""
    found = []
    for event in _newest_first(fleet, None)[:room]:
        severity = severity_of(event)
        name = event.object.rpartition("/")[2]
        told = event.message if name and name in event.message else f"{name} {event.message}".strip()
        kind = event.kind if severity is Severity.INFO else f"{severity.glyph} {event.kind}"
        found.append(
            Row(
                event_id(event),
                (
                    Cell(local_time(event.at, fleet.utc_offset_seconds), Severity.DIM),
                    Cell(kind, Severity.ACCENT if severity is Severity.INFO else severity),
                    Cell(told),
                ),
            )
        )
    return found


def find(fleet: FleetState, row_id: str) -> Event | None:
    return next((event for event in fleet.events if event_id(event) == row_id), None)


def detail_lines(event: Event, utc_offset_seconds: float) -> list[TextLine]:
    severity = severity_of(event)
    return [
        labelled("when", (local_time(event.at, utc_offset_seconds, digits=3), Severity.NORMAL), width=9),
        labelled("what", (event.message, severity if severity is not Severity.INFO else Severity.NORMAL), width=9),
        labelled("object", (event.object, Severity.NORMAL), width=9),
        labelled("actor", (event.actor, Severity.NORMAL), width=9),
        labelled("result", (event.result or "–", Severity.NORMAL), width=9),
    ]


def target(event: Event) -> tuple[str, str] | None:
    """(kind, name) of what the event is about, for jumping to it."""
    kind, slash, name = event.object.partition("/")
    return (kind, name) if slash and name else None
