"""The candidates of a model as columns: filtered once, weighed for every request.

**Theory.** Between two samples (a second) nothing about a replica changes but what this process itself has open there.
So all the rest is worked out once per change, as columns of the replicas that may take a request (the *field*), and
what a request pays is one pass over a dictionary and one addition per replica, in C.

Filter: the best standing there is (one due for a probe counts as sound, so that it gets its chance while others
stand), less those that are full by a fresh sample, less those whose share is 0 while another has one.

*In-flight credit.* A sample says how it was when it was taken. Where requests waited in the engine then, each one more
that is open now waits too, and each one that has ended since made room, so the room left in the queue becomes a limit
on what this process may have open (`decisions/load`).

*Unknown is not empty.* A replica whose figures are stale or missing counts as the mean of those that are known: it
neither wins nor loses by silence.
"""

from collections.abc import Mapping, Sequence
from math import inf
from operator import add, ge

from nebula_proxy.decisions.candidates import SAMPLE_FRESH_SECONDS, Candidate, Standing
from nebula_proxy.decisions.load import even_share

#: Where nobody's figure is known.
KV_CACHE_GUESS = 0.5

_SOUND, _PROBE, _OUT = Standing.SOUND, Standing.PROBE, Standing.OUT


class Field:
    """Columns, one place per replica that may take a request; shared by requests until something changes."""

    __slots__ = (
        "base",
        "candidates",
        "kv",
        "kv_each",
        "limits",
        "max_inflight",
        "names",
        "none",
        "of_seat",
        "replicas",
        "rows",
        "shared",
        "stretch",
        "tier",
        "unread",
    )

    def __init__(self, rows: Sequence[Candidate], tier: Standing, candidates: Sequence[Candidate]) -> None:
        #: Everybody, and what is left of them.
        self.candidates = candidates
        self.tier = tier
        self.rows = rows
        self.replicas = [row.replica for row in rows]
        #: A zero for each: what is known of those of whom nothing is.
        self.none = [0] * len(rows)
        self.names = [row.replica.encode("latin-1", "replace") for row in rows]
        waits = [row.waiting if row.sample_age <= SAMPLE_FRESH_SECONDS else None for row in rows]
        mean = _mean(waits, 0.0)
        #: Load that does not come from this process: what others have open, and what waits inside the engine.
        self.base = [row.elsewhere + (mean if wait is None else wait) for row, wait in zip(rows, waits, strict=True)]
        #: As many as this process may have open there, the next one not counted.
        self.limits = [_limit(row) for row in rows]
        self.max_inflight = [row.max_inflight for row in rows]
        fills = [row.kv_cache_usage if row.sample_age <= SAMPLE_FRESH_SECONDS else None for row in rows]
        middle = _mean(fills, KV_CACHE_GUESS)
        self.kv = [middle if fill is None else fill for fill in fills]
        #: What one request fills, for those sent since the sample.
        self.kv_each = [
            0.0 if fill is None else fill / max(1, (row.running or 0) + (row.waiting or 0))
            for row, fill in zip(rows, fills, strict=True)
        ]
        #: Bytes of prompts that others sent and nobody has a first token of; None where there are none.
        self.unread = [row.unread_elsewhere for row in rows] if any(row.unread_elsewhere for row in rows) else None
        #: Other processes have requests open here too.
        self.shared = any(row.elsewhere for row in rows)
        #: 1 / weight; None where all are equal.
        self.stretch = None if all(row.weight == 1.0 for row in rows) else [1.0 / row.weight for row in rows]
        self.of_seat = {row.seat: place for place, row in enumerate(rows) if row.seat}

    def narrowed(self, places: Sequence[int]) -> "Field":
        return Field([self.rows[place] for place in places], self.tier, self.candidates)


def field_of(candidates: Sequence[Candidate], *, without: str | None = None) -> Field:
    """Filters; `without` is a replica that was tried already. `inflight` of a candidate is not looked at here."""
    tier = _OUT
    rows: list[Candidate] = []
    for candidate in candidates:
        standing = _SOUND if candidate.standing is _PROBE else candidate.standing
        if standing > tier or standing is _OUT or candidate.replica == without:
            continue
        if standing < tier:
            tier = standing
            rows = []
        if not is_full_by_sample(candidate):
            rows.append(candidate)
    shared = [row for row in rows if row.weight > 0]
    if len(shared) < len(rows):
        rows = shared or [row._replace(weight=1.0) for row in rows]
    return Field(rows, tier, candidates)


def is_full_by_sample(candidate: Candidate) -> bool:
    """Whether a fresh sample says that its KV cache is full. A full queue is another matter: it empties between two
    samples, so it bounds what may be open instead (`_limit`).
    """
    if candidate.sample_age > SAMPLE_FRESH_SECONDS:
        return False
    usage = candidate.kv_cache_usage
    return bool(usage and usage >= candidate.max_kv_cache_usage)


class Weighed:
    """A field at the moment of one request."""

    __slots__ = ("field", "loads", "own", "unread")

    def __init__(self, field: Field, own: list[int], loads: list[float], unread: list[int] | None) -> None:
        self.field = field
        #: Open requests of this process.
        self.own = own
        #: Open requests of everybody and those that wait in the engine, as heavy as they are for the replica's share.
        self.loads = loads
        #: Bytes of prompts that nobody has a first token of; None where there are none.
        self.unread = unread


def weighed(field: Field, inflight: Mapping[str, int], unread: Mapping[str, int]) -> Weighed:
    """The field with what this process has open now (by replica); those that are full by it are left out."""
    # Every request passes here: `map` over columns stays in C, a comprehension is a call of its own.
    own = list(map(inflight.get, field.replicas, field.none))
    if True in map(ge, own, field.limits):
        limits = field.limits
        field = field.narrowed([place for place, mine in enumerate(own) if mine < limits[place]])
        own = list(map(inflight.get, field.replicas, field.none))
    loads: list[float] = list(map(add, own, field.base))
    if field.stretch is not None:
        loads = [(load + 1.0) * factor - 1.0 for load, factor in zip(loads, field.stretch, strict=True)]
    pending = field.unread
    if unread:
        mine = map(unread.get, field.replicas, field.none)
        pending = list(mine) if pending is None else list(map(add, mine, pending))
    return Weighed(field, own, loads, pending)


def _limit(row: Candidate) -> int:
    room = row.max_inflight - row.elsewhere
    if row.rivals:
        room = min(room, even_share(row.max_inflight, row.rivals))
    if row.waiting and row.sample_age <= SAMPLE_FRESH_SECONDS:
        room = min(room, row.inflight_at_sample + row.max_waiting - row.waiting)
    return room


def _mean(figures: Sequence[float | None], otherwise: float) -> float:
    known = [figure for figure in figures if figure is not None and figure < inf]
    return sum(known) / len(known) if known else otherwise
