"""A chat pane in figures and words: time to first token, tokens per second, who answered, where two answers part.

`Pane` is what one stream has given so far; it is folded event by event with the reader's monotonic `now`. Tokens are
counted by pieces of text until the engine says how many there were; a figure counted so is marked `~`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from nebula_tui.presenters.cells import UNKNOWN, Severity, count, milliseconds, sparkline
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.states import short_replica
from nebula_tui.presenters.text import TextLine

#: Bars of the rate history; each is the pieces of one slice of this many seconds.
SLICE_SECONDS: Final = 0.25
#: Below this a pane has no room for more than its replica's name.
_NARROW: Final = 36


class Progress(StrEnum):
    IDLE = "idle"
    WAITING = "waiting"
    STREAMING = "streaming"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Pane:
    """One answer to one prompt."""

    progress: Progress = Progress.IDLE
    prompt: str = ""
    text: str = ""
    replica: str | None = None
    decision: str | None = None
    request_id: str | None = None
    started_at: float = 0.0
    first_at: float | None = None
    last_at: float | None = None
    ttft_seconds: float | None = None
    pieces: int = 0
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    slices: tuple[int, ...] = ()

    @property
    def busy(self) -> bool:
        return self.progress in (Progress.WAITING, Progress.STREAMING)

    def asked(self, prompt: str, now: float) -> "Pane":
        return Pane(progress=Progress.WAITING, prompt=prompt, started_at=now)

    def opened(self, replica: str | None, decision: str | None, request_id: str | None = None) -> "Pane":
        return replace(self, replica=replica, decision=decision, request_id=request_id)

    def grown(self, text: str, pieces: int, ttft_seconds: float | None, now: float) -> "Pane":
        """`pieces` came together since the last fold."""
        first_at = self.first_at if self.first_at is not None else now
        place = max(0, int((now - first_at) / SLICE_SECONDS))
        slices = list(self.slices) + [0] * (place + 1 - len(self.slices))
        slices[place] += pieces
        return replace(
            self,
            progress=Progress.STREAMING,
            text=self.text + text,
            pieces=self.pieces + pieces,
            first_at=first_at,
            last_at=now,
            ttft_seconds=ttft_seconds if self.ttft_seconds is None else self.ttft_seconds,
            slices=tuple(slices),
        )

    def done(self, finish_reason: str | None, prompt_tokens: int | None, completion_tokens: int | None) -> "Pane":
        return replace(
            self,
            progress=Progress.DONE,
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    def stopped(self) -> "Pane":
        return replace(self, progress=Progress.STOPPED) if self.busy else self

    def failed(self, error: str) -> "Pane":
        return replace(self, progress=Progress.FAILED, error=error)

    @property
    def tokens(self) -> int:
        return self.completion_tokens if self.completion_tokens is not None else self.pieces

    @property
    def tokens_per_second(self) -> float | None:
        """Mean after the first token."""
        if self.first_at is None or self.last_at is None or self.last_at <= self.first_at or self.tokens < 2:
            return None
        return (self.tokens - 1) / (self.last_at - self.first_at)

    @property
    def itl_seconds(self) -> float | None:
        rate = self.tokens_per_second
        return 1.0 / rate if rate else None


def pane_title(fleet: FleetState, model: str, target: str | None, pane: Pane, width: int = 80) -> str:
    """`r1 · node-034` for a pinned replica; through the proxy `demo`, and `→ r1 · node-034` once it has answered."""
    replica = pane.replica or target
    if replica is None:
        return f"{model} via proxy"
    if width < _NARROW:
        return short_replica(replica, model)  # the note beside it tells the time to the first token
    known = fleet.replicas.get(replica)
    node = f" · {known.node}" if known is not None else ""
    pinned = "" if target == replica else f"{model} → "
    simulated = " · simulated" if known is not None and known.simulated else ""
    return f"{pinned}{short_replica(replica, model)}{node}{simulated}"


def pane_note(pane: Pane, now: float) -> tuple[str, Severity]:
    match pane.progress:
        case Progress.WAITING:
            return f"waiting {max(0.0, now - pane.started_at):.1f}s", Severity.INFO
        case Progress.FAILED:
            return "failed", Severity.CRIT
        case Progress.IDLE:
            return "ready", Severity.DIM
        case _:
            note = f"TTFT {milliseconds(pane.ttft_seconds)}"
            return (
                (f"{note} · stopped", Severity.WARN) if pane.progress is Progress.STOPPED else (note, Severity.NORMAL)
            )


def figures(pane: Pane, width: int = 80) -> str:
    """`71 tok/s  ITL 17ms  188 tok`, the later ones only where there is room; `~` where pieces were counted."""
    rate = pane.tokens_per_second
    counted = "" if pane.completion_tokens is not None else "~"
    shown_rate = UNKNOWN if rate is None else f"{counted}{rate:.0f}"
    tokens = UNKNOWN if pane.progress is Progress.IDLE else f"{counted}{count(pane.tokens)}"
    parts = [f"{shown_rate} tok/s", f"{tokens} tok", f"ITL {milliseconds(pane.itl_seconds)}"]
    if pane.prompt_tokens is not None:
        parts.append(f"in {count(pane.prompt_tokens)}")
    if pane.finish_reason == "length":
        parts.append("cut at max")
    while len(parts) > 1 and len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)


def rate_bar(pane: Pane, width: int) -> str:
    """Tokens over the life of the answer."""
    return sparkline(pane.slices, width).lstrip() if pane.slices else ""


def verdict(names: Sequence[str], panes: Sequence[Pane]) -> TextLine:
    """What comparing the panes says: where they part, and whose first token was late."""
    if len(panes) < 2 or not all(pane.text for pane in panes):
        return ()
    words: list[str] = []
    first = panes[0]
    same = [names[0]]
    for name, pane in zip(names[1:], panes[1:], strict=True):
        at = _parting(first.text, pane.text)
        if at is None:
            same.append(name)
        else:
            words.append(f"{name} parts from {names[0]} at character {at:,}")
    if len(same) > 1:
        length = min(len(pane.text) for name, pane in zip(names, panes, strict=True) if name in same)
        words.insert(0, f"{' = '.join(same)} for {length:,} characters")
    known = [
        (pane.ttft_seconds, name) for name, pane in zip(names, panes, strict=True) if pane.ttft_seconds is not None
    ]
    if len(known) == len(panes):
        slow, fast = max(known), min(known)
        if fast[0] > 0 and slow[0] / fast[0] >= 1.5:
            words.append(f"TTFT of {slow[1]} {slow[0] / fast[0]:.1f}× that of {fast[1]}")
        else:
            words.append(f"Δ TTFT {milliseconds(slow[0] - fast[0])}")
    return (("verdict  ", Severity.DIM), (" · ".join(words), Severity.NORMAL))


def _parting(first: str, second: str) -> int | None:
    """The character at which two texts differ; None while one is the beginning of the other."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return None


def session_line(
    fleet: FleetState, model: str | None, targets: Sequence[str], max_tokens: int, temperature: float | None
) -> TextLine:
    via = "via proxy" if not targets else "to " + ", ".join(short_replica(target, model) for target in targets)
    known = fleet.deployments.get(model) if model is not None else None
    ready = f"{known.replicas_ready}/{known.replicas_wanted} ready" if known is not None else ""
    temperature_word = "default" if temperature is None else f"{temperature:.1f}"
    bar = (" ▏", Severity.DIM)
    return (
        (f"model {model or UNKNOWN}", Severity.ACCENT),
        bar,
        (f"{ready}", Severity.NORMAL),
        bar,
        (via, Severity.NORMAL),
        bar,
        (f"temp {temperature_word}", Severity.NORMAL),
        bar,
        (f"max {max_tokens}", Severity.NORMAL),
    )
