"""Which requests leave a record for `why`: all that are out of the ordinary, and a share of the rest.

A record is a kilobyte in a stream that keeps ten thousand, so no fault may flood it: each second has an allowance, and
requests that were turned away have a smaller one of their own (at ten times the load there is nothing else). On a
quiet proxy the floor makes the share irrelevant: then every request has its record.
"""

from typing import NamedTuple


class Sampling(NamedTuple):
    """The settings; counts are per second and process."""

    #: Share of ordinary requests, 0..1.
    ratio: float = 0.05
    #: Ordinary requests that are kept whatever the share says.
    floor: int = 5
    #: No more than so many, whatever the reason.
    most: int = 50
    #: Of them, requests that no replica was tried for.
    most_rejected: int = 10
    #: To the first token of a stream, or the whole of a plain answer.
    slow_seconds: float = 10.0


def kept_because(
    sampling: Sampling,
    status: int,
    broken: bool,
    attempts: int,
    retried: int,
    resumes: int,
    first_seconds: float,
    person: bool,
    roll: float,
    floor_left: int,
) -> str | None:
    """Why a request that has ended is kept; None when it is not. `first_seconds` as in `slow_seconds`, `roll` in 0..1.

    `broken` says that a stream was cut or ended in an error event, or that a person ended it. 4xx of the client's own are ordinary.
    """
    if resumes:
        return "resumed"
    if attempts == 0 and status in {429, 503}:
        return "rejected"
    if broken or status >= 500:
        return "error"
    if retried:
        return "retried"
    if first_seconds > sampling.slow_seconds:
        return "slow"
    if person:
        # Somebody at a terminal, who may ask next why it went where it went.
        return "person"
    if roll < sampling.ratio:
        return "sample"
    return "floor" if floor_left > 0 else None
