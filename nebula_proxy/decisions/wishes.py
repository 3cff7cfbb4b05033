"""What a client may say about its own request in headers (CONTRACT, 3), read once."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from nebula_proxy.decisions.refusal import Refusal, bad_request

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,79}").fullmatch
_SECONDS = re.compile(rb"[0-9]{1,6}(\.[0-9]{1,6})?").fullmatch
_FALSE = frozenset({b"0", b"false", b"no", b""})


class Wishes(NamedTuple):
    strategy: str | None = None
    #: Pin to this replica.
    replica: str | None = None
    priority: int = 0
    no_retry: bool = False
    #: Longest wait for room, in seconds; None is as long as the proxy allows.
    wait: float | None = None
    #: A cut stream shall not go on from another replica.
    no_resume: bool = False


NO_WISHES = Wishes()


def is_name(name: str) -> bool:
    """Whether a client can ask for something of this name."""
    return _NAME(name.encode("utf-8", "replace")) is not None


def request_id(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The client's own id where it is safe to log and forward, else None: mint one."""
    given = headers.get(b"x-request-id")
    return given if given is not None and _REQUEST_ID(given) is not None else None


def traceparent(headers: Mapping[bytes, bytes]) -> bytes | None:
    given = headers.get(b"traceparent")
    return given if given is not None and _TRACEPARENT(given) is not None else None


@lru_cache(maxsize=4096)
def _has_wishes(names: tuple[bytes, ...]) -> bool:
    """Remembered: a client sends the same names again and again."""
    return any(name.startswith(b"x-nebula-") for name in names)


def read_wishes(headers: Mapping[bytes, bytes]) -> Wishes | Refusal:
    """The `x-nebula-…` headers. Other headers of that prefix mean nothing and go nowhere."""
    if not _has_wishes(tuple(headers)):
        return NO_WISHES
    strategy = headers.get(b"x-nebula-strategy")
    replica = headers.get(b"x-nebula-replica")
    priority = headers.get(b"x-nebula-priority")
    no_retry = headers.get(b"x-nebula-no-retry")
    no_resume = headers.get(b"x-nebula-no-resume")
    if replica is not None and _NAME(replica) is None:
        return bad_request("x-nebula-replica is not a replica id", hint="`nebula replicas` lists them")
    if strategy is not None and _NAME(strategy) is None:
        return bad_request("x-nebula-strategy is not a strategy's name", hint="for example least_pending")
    level = 0
    if priority is not None:
        try:
            level = int(priority)
        except ValueError:
            return bad_request("x-nebula-priority is not a whole number", hint="-10 to 10, higher is served first")
        if not -10 <= level <= 10:
            return bad_request("x-nebula-priority is out of range", hint="-10 to 10, higher is served first")
    wait = headers.get(b"x-nebula-wait")
    seconds = None
    if wait is not None:
        if _SECONDS(wait) is None:
            return bad_request("x-nebula-wait is not a number of seconds", hint="for example 2.5; 0 does not wait")
        seconds = float(wait)
    return Wishes(
        None if strategy is None else strategy.decode("ascii"),
        None if replica is None else replica.decode("ascii"),
        level,
        no_retry is not None and no_retry.lower() not in _FALSE,
        seconds,
        no_resume is not None and no_resume.lower() not in _FALSE,
    )
