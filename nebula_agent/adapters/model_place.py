"""Where models come from, each behind the same two questions: what is there, and the bytes of a file from an offset on."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol
from urllib.parse import urlsplit

from nebula_agent.decisions.model_files import Listing, RemoteFile
from nebula_agent.decisions.policy import LocalPolicy, is_host_allowed
from nebula_core.errors import NebulaError

CONNECT_SECONDS = 10.0
#: A download of which nothing comes for so long is tried again.
STALL_SECONDS = 30.0
CHUNK = 1024**2
_LOGIN = re.compile(r"//[^/\s]*@")


class FetchFailed(NebulaError):
    """A model could not be had. `final`: trying again cannot help before somebody changed something."""

    code = "model_not_fetched"

    def __init__(self, message: str, *, hint: str | None = None, final: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.final = final


class RangeRefused(FetchFailed):
    """What is here is not the beginning of what is there: it is fetched from the start."""


class Body(Protocol):
    """The bytes of one file; `starts_at` is the offset that is really sent, 0 when the rest could not be had alone."""

    @property
    def starts_at(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class Part:
    """A `Body` of chunks."""

    def __init__(self, starts_at: int, chunks: Iterator[bytes]) -> None:
        self.starts_at = starts_at
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


class Place(Protocol):
    """One model where it comes from. All calls block, each with limits of its own."""

    def listing(self) -> Listing:
        """Raises FetchFailed."""
        ...

    def open(self, listing: Listing, file: RemoteFile, offset: int) -> AbstractContextManager[Body]:
        """Raises FetchFailed."""
        ...

    def close(self) -> None: ...


def host_of(url: str) -> str:
    """Host and port, to be shown: a login that stands before them (`https://user:password@mirror`) is nobody's business."""
    return urlsplit(url).netloc.rpartition("@")[2]


def without_login(text: str) -> str:
    """Somebody's words with the logins of addresses in them left out."""
    return _LOGIN.sub("//", text)


def check_address(policy: LocalPolicy, url: str) -> None:
    """Raises FetchFailed for what is no address, and for a host the policy does not name."""
    try:
        parts = urlsplit(url)
        fit = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        fit = False
    if not fit or not parts.hostname:
        raise FetchFailed(
            f"{without_login(url)[:200]!r} is no address of a hub", hint="Correct the endpoint", final=True
        )
    if not is_host_allowed(policy, parts.hostname):
        raise FetchFailed(
            f"the policy of this node does not allow models from {parts.hostname}",
            hint="Add it to `model_hosts` there",
            final=True,
        )
