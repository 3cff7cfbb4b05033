"""What every verb shares: the chosen cluster, the output, and how an error ends the command."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from nebula_tui.adapters.api import Api, ApiError
from nebula_tui.cli.context import Choice, Target, resolve
from nebula_tui.cli.errors import BY_STATUS, CommandError, Exit
from nebula_tui.cli.output import Output, say

#: Verdicts of nodes, and what they fetch, below a plan.
MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Session:
    """The global options, wherever they stood on the command line."""

    choice: Choice = field(default_factory=Choice)
    output: Output = Output.TABLE
    timeout_seconds: float = 10.0

    def target(self) -> Target:
        return resolve(self.choice)

    @contextmanager
    def api(self) -> Iterator[Api]:
        """The Control API; its errors leave as CommandError."""
        target = self.target()
        try:
            with Api(target.url, target.key, timeout_seconds=self.timeout_seconds, ca_file=target.ca_file) as api:
                yield api
        except ApiError as error:
            code = Exit.UNREACHABLE if error.status is None else BY_STATUS.get(error.status, Exit.FAILED)
            raise CommandError(error.message, code=code, hint=error.hint) from error

    @property
    def for_people(self) -> bool:
        return self.output in (Output.TABLE, Output.WIDE)


def segment(name: str) -> str:
    """A name as one path segment."""
    return quote(name, safe="")


def confirm(question: str, *, yes: bool) -> None:
    """Asks on a terminal; elsewhere only --yes goes on. Raises CommandError when the answer is no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError(
            "this asks for a confirmation", code=Exit.USAGE, hint="add --yes, or --dry-run to look first"
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was done", code=Exit.FAILED)


def act(
    session: Session,
    method: str,
    path: str,
    *,
    body: Any = None,
    dry_run: bool,
    yes: bool,
    ask: Callable[[dict[str, Any]], bool],
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A mutating call as people do it: the server's plan first, a question when `ask(plan)`, then the call."""
    with session.api() as api:
        plan: dict[str, Any] = api.call(method, path, params={"dry_run": 1}, body=body, headers=headers)
        if dry_run:
            return plan
        if ask(plan) and not yes:
            show_plan(plan)
            confirm("go on?", yes=yes)
        answer: dict[str, Any] = api.call(method, path, body=body, headers={**(headers or {}), **once()})
        return answer


def once() -> dict[str, str]:
    """The header by which a call that is repeated on the way is done once."""
    import uuid

    return {"idempotency-key": uuid.uuid4().hex}


def show_plan(plan: dict[str, Any]) -> None:
    from nebula_core.records.plan import PlannedFetch

    say(f"plan: {plan['summary']}")
    for blocked in plan.get("plan", {}).get("unplaceable", ()):
        for verdict in blocked.get("verdicts", ())[:MOST_SHOWN]:
            say(f"  {verdict['node']}: {verdict['reason']}")
    fetches = plan.get("fetches", ())
    for fetch in fetches[:MOST_SHOWN]:
        say(f"  {PlannedFetch.model_validate(fetch).words}")
    if len(fetches) > MOST_SHOWN:
        say(f"  … and {len(fetches) - MOST_SHOWN} more to fetch")
    if (affected := plan.get("inflight_affected")) and plan.get("plan", {}).get("changes"):
        say(f"  {affected} requests in flight on what stops or moves; they are let finish")
    if plan.get("last_ready"):
        say("  this takes the last ready replica away")


def stops_something(plan: dict[str, Any]) -> bool:
    """Whether the plan takes anything out of service."""
    changes = plan.get("plan", {}).get("changes", ())
    return any(
        change.get("placement") is None or change["placement"].get("wanted", "run") != "run" for change in changes
    )
