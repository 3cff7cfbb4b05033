"""A plan of the server in words, for the dialog that asks before anything is done; and the same as a shell command.

The plan is what the planner would do, computed by the planner itself (`?dry_run=1`); nothing here guesses at it.
"""

import shlex
import textwrap
from dataclasses import dataclass
from typing import Final

from nebula_core.records.placement import Wanted
from nebula_core.records.plan import Bucket
from nebula_core.records.views import PlanView
from nebula_tui.presenters.cells import Severity, duration
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.states import gpu_span, short_replica
from nebula_tui.presenters.text import BLANK, TextLine, labelled, plural


@dataclass(frozen=True, slots=True)
class Action:
    """What the operator asked for. `kind` is deployment, node or replica; `replicas` only where `verb` is scale."""

    verb: str
    kind: str
    name: str
    replicas: int | None = None

    @property
    def title(self) -> str:
        return f"{self.verb} {self.name}"

    @property
    def command(self) -> str:
        """The same from the shell."""
        words = ["nebula", self.verb, self.name]
        if self.replicas is not None:
            words.append(str(self.replicas))
        return shlex.join(words)


#: More replicas than this going at once asks for the name.
BLAST_RADIUS: Final = 1
#: Cells of a line in the dialog.
WIDTH: Final = 56
_LABEL: Final = 8
_MOST_LINES: Final = 12
_MOST_FETCHES: Final = 3

_VERBS: Final = {Wanted.RUN: "start", Wanted.DRAIN: "drain", Wanted.STOP: "stop"}


def asks_name(plan: PlanView, action: Action) -> bool:
    """Whether the name must be typed: the last ready replica would go, or more than one stops or moves."""
    return plan.last_ready or len(leaving(plan)) > BLAST_RADIUS or (action.replicas == 0)


def leaving(plan: PlanView) -> tuple[str, ...]:
    """Replicas that stop or move in this plan."""
    gone = {
        change.replica
        for change in plan.plan.changes
        if change.placement is None or change.placement.wanted is not Wanted.RUN
    }
    gone |= {
        entry.replica
        for entry in plan.plan.entries
        if entry.replica is not None and entry.bucket in (Bucket.SURPLUS, Bucket.MOVING, Bucket.REPLACED)
    }
    return tuple(sorted(gone))


def is_empty(plan: PlanView) -> bool:
    return not plan.plan.changes and not plan.plan.unplaceable and not leaving(plan) and plan.plan.brake is None


def plan_lines(fleet: FleetState, plan: PlanView) -> list[TextLine]:
    """What starts, stops and moves, with reasons; what does not fit, and why; what it costs."""
    lines: list[TextLine] = []
    if plan.plan.brake:
        lines.append(_line("brake", f"▲ {plan.plan.brake}", Severity.CRIT))
    lines.extend(_changes(fleet, plan))
    for blocked in plan.plan.unplaceable:
        lines.append(_line("blocked", f"▲ {blocked.count} × {blocked.deployment}: {blocked.reason}", Severity.CRIT))
        unfit = [verdict for verdict in blocked.verdicts if not verdict.fits]
        lines.extend(_line("", f"{verdict.node}: {verdict.reason}", Severity.DIM) for verdict in unfit[:3])
    lines.extend(_fetches(plan))
    if not lines:
        lines.extend(_summary(plan.summary or "nothing to do"))
    lines.append(BLANK)
    lines.append(_effect(plan))
    if plan.last_ready:
        lines.append(_line("risk", "● the last ready replica goes: no answer then", Severity.WARN))
    return lines


def _summary(text: str) -> list[TextLine]:
    first, *rest = textwrap.wrap(text, WIDTH - _LABEL) or [""]
    return [_line("plan", first, Severity.NORMAL), *(_line("", line, Severity.NORMAL) for line in rest)]


def _changes(fleet: FleetState, plan: PlanView) -> list[TextLine]:
    lines: list[TextLine] = []
    seen: set[str] = set()
    for change in plan.plan.changes:
        seen.add(change.replica)
        name = short_replica(change.replica)
        placed = change.placement
        verb = "remove" if placed is None else _VERBS[placed.wanted]
        known = fleet.replicas.get(change.replica)
        node = placed.node if placed is not None else (known.node if known is not None else "")
        gpus = placed.gpus if placed is not None else ()
        spot = gpu_span(tuple(int(label) for gpu in gpus if (label := fleet.gpu_label(gpu)).isdecimal()))
        where = f"{node} · gpu {spot}" if spot else node
        going = verb != "start"
        open_requests = f" · {known.inflight} in flight" if going and known is not None and known.inflight else ""
        severity = Severity.WARN if going else Severity.OK
        lines.append(
            labelled(
                verb,
                (f"{name}  ", severity),
                (f"{where}{open_requests}", Severity.NORMAL),
                width=_LABEL,
            )
        )
        if not change.reason.startswith(f"{verb}s {change.replica} on"):
            # The planner's own short form says no more than the line above.
            lines.extend(_reason(change.reason))
    for entry in plan.plan.entries:
        if entry.bucket in (Bucket.KEEP, Bucket.STOPPING) or (entry.replica or "") in seen:
            continue
        name = short_replica(entry.replica) if entry.replica else entry.deployment
        where = f" on {entry.node}" if entry.node else ""
        severity = Severity.WARN if entry.bucket is not Bucket.MISSING else Severity.NORMAL
        lines.append(_line(entry.bucket.value, f"{name}{where}", severity))
        lines.extend(_reason(entry.reason))
    if len(lines) > _MOST_LINES:
        left = len(lines) - _MOST_LINES + 1
        lines = [*lines[: _MOST_LINES - 1], _line("", f"… and {left} more", Severity.DIM)]
    return lines


def _fetches(plan: PlanView) -> list[TextLine]:
    """What has to come to the nodes' disks first, and how large it is."""
    lines: list[TextLine] = []
    for fetch in plan.fetches[:_MOST_FETCHES]:
        first, *rest = textwrap.wrap(fetch.words, WIDTH - _LABEL) or [""]
        lines.append(_line("fetch" if fetch.kind == "model" else "pull", first, Severity.NORMAL))
        lines.extend(_line("", line, Severity.NORMAL) for line in rest[:2])
    if (left := len(plan.fetches) - _MOST_FETCHES) > 0:
        lines.append(_line("", f"… and {left} more", Severity.DIM))
    return lines


def _effect(plan: PlanView) -> TextLine:
    words = [plural(plan.inflight_affected, "open request") + " affected"]
    starts = any(change.placement is not None and change.placement.wanted is Wanted.RUN for change in plan.plan.changes)
    if plan.estimated_ready_seconds is not None:
        load = duration(plan.estimated_ready_seconds)
        words.append(f"ready about {load} after that" if plan.fetches else f"ready in about {load}")
    elif starts:
        words.append("ready: unknown, never loaded before")
    severity = Severity.WARN if plan.inflight_affected else Severity.NORMAL
    return _line("effect", " · ".join(words), severity)


def _reason(text: str) -> list[TextLine]:
    """In as many lines as it takes, three at most: a reason that is cut is none."""
    lines = textwrap.wrap(text, WIDTH - _LABEL, max_lines=3, placeholder=" …")
    return [_line("", line, Severity.DIM) for line in lines]


def _line(label: str, text: str, severity: Severity) -> TextLine:
    return labelled(label, (text, severity), width=_LABEL)
