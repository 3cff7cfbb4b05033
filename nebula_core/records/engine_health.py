"""What an agent makes of one start of an engine: is it well, and does it say what its version should say?

Everything here is of one engine epoch and says nothing of another start.
"""

from typing import Literal

from nebula_core.records.base import Record


class MetricsSchema(Record):
    """The names of an engine's figures: those its version should have, and those its `/metrics` has.

    Travels with every view of a replica, so names are given only where something is amiss.
    """

    engine_version: str | None = None
    #: How many names this version should have, and how many of the figures are there under any name.
    expected: int = 0
    found: int = 0
    #: (expected, found instead of it): the figure is there, under a name of another version.
    renamed: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    #: (missing, a name on the page that resembles it): not used, for whoever maintains the names.
    resembling: tuple[tuple[str, str], ...] = ()
    #: What of Nebula is off because of what is missing, in words.
    off: tuple[str, ...] = ()


class EngineHealth(Record):
    """Liveness, readiness and progress, kept apart: each can fail while the others hold (DESIGN, 6.3)."""

    engine_epoch: str | None = None
    #: Liveness: its process lives. None: there is none to ask about.
    alive: bool | None = None
    #: Readiness: this start listed its model and gave a token.
    ready: bool = False
    #: What `/health` says now; None: not asked, or no answer.
    answers: bool | None = None
    #: Progress: `moving` (tokens come), `idle` (nothing to do), `still` (requests run and nothing moves), `unknown`.
    progress: Literal["moving", "idle", "still", "unknown"] = "unknown"
    #: For how long nothing has moved while requests run.
    still_seconds: float | None = None
    #: The latest canary token of an idle engine: whether it came, and how long ago. None: none was asked for yet.
    canary: Literal["passed", "failed"] | None = None
    canary_age_seconds: float | None = None
