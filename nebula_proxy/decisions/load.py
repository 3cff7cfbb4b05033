"""What an engine's figures of a moment ago say of its load now.

A sample comes once a second; an engine can empty its queue or drown within that time. Two estimates bridge it, from what
a proxy knows at once, its own open requests:

* *Who waits now.* An engine that let requests wait was busy: each request that has ended since made room for one of
  them, each that was sent since joined them. So waiting now = waiting then + (open now - open then), never below 0.
* *How many run at once (slots).* While requests wait in two samples in a row and no more run than before, the engine runs
  as many as it can. From then on a replica is full at slots + bound of waiting, without a sample. If ever more run, it
  could after all: the estimate is forgotten, so a wrong one lasts a second. Where the options of the engine say the
  number, that is the beginning.
"""

from typing import NamedTuple


class Figures(NamedTuple):
    """Requests inside an engine at one sample; None is unknown."""

    running: int | None = None
    waiting: int | None = None


NO_FIGURES = Figures()


def slots_after(slots: int | None, said: int | None, before: Figures, now: Figures) -> int | None:
    """How many requests the engine runs at once, after the samples `before` and `now`; None is unknown.

    `slots` is what was thought until now, `said` what its options say.
    """
    running = now.running
    if running is None or now.waiting is None:
        return slots
    if now.waiting > 0 and before.waiting and before.running is not None and running <= before.running:
        seen = before.running
        return max(1, seen if said is None else min(seen, said))
    if slots is not None and running > slots:
        return said
    return slots


def waiting_now(waiting: int | None, inflight: int, inflight_at_sample: int) -> int | None:
    """Requests that wait inside the engine now, by its latest sample and what this process has open there."""
    if not waiting:
        return waiting
    return max(0, waiting + inflight - inflight_at_sample)


def even_share(most: int, rivals: int) -> int:
    """The part of a replica that a proxy keeps while requests wait for it in so many others; at least 1.

    Whoever has places refills them at once, so one that has none would wait for ever.
    """
    return -(-most // (rivals + 1))


def most_open(inflight: int, waiting_bound: int, slots: int | None) -> int:
    """Open requests at which a replica is full."""
    return inflight if slots is None else min(inflight, slots + waiting_bound)
