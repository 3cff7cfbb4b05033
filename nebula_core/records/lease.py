"""A worker's slice of a key's limits: what it claims from the store, and what it is answered."""

from typing import NamedTuple


class Budget(NamedTuple):
    """One minute limit in a claim. Spent is counted from the worker's start on; kept and wanted are slices, kept first."""

    #: Per minute; None is no limit.
    limit: int | None = None
    spent: int = 0
    kept: int = 0
    wanted: int = 0


class Claim(NamedTuple):
    """What a worker says of one key."""

    key: str
    requests: Budget = Budget()
    tokens: Budget = Budget()
    #: None is no limit.
    stream_limit: int | None = None
    open_streams: int = 0
    wanted_streams: int = 0


class Slice(NamedTuple):
    """What the store answers. Granted is counted like spent: granted - spent is what may be spent now."""

    granted_requests: int
    granted_tokens: int
    streams: int
    #: What nobody holds; below 0 is owed.
    requests_left: int
    tokens_left: int
    streams_left: int
