"""How far a pull is, whether its disk will hold it, and what its failure means; from the daemon's own messages.

The daemon tells of each layer by itself: how many bytes of how many came, then how many were unpacked. Totals are only known
once a layer has begun, so the share may fall when another begins; what is shown only rises.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nebula_core.records.base import frozen_map

#: Of the whole, the share that is downloading; the rest is unpacking.
_DOWNLOAD_SHARE = 0.8
#: Room there must be for each byte that is still to come (reliability, row 20).
ROOM_FACTOR = 1.2
#: Nothing that moves for so long ends the try.
STALL_SECONDS = 30.0
TRIES = 3
MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Layer:
    total: int = 0
    downloaded: int = 0
    unpacked: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class PullProgress:
    layers: Mapping[str, Layer] = field(default_factory=frozen_map)
    #: 0..1 and never falling; None before the first layer is known.
    ratio: float | None = None

    @property
    def total_bytes(self) -> int:
        return sum(layer.total for layer in self.layers.values())

    @property
    def downloaded_bytes(self) -> int:
        return sum(layer.total if layer.done else layer.downloaded for layer in self.layers.values())

    @property
    def missing_bytes(self) -> int:
        """Still to come of the layers that have begun."""
        return self.total_bytes - self.downloaded_bytes

    def heard(self, message: Mapping[str, Any]) -> "PullProgress":
        """With one more message of the daemon."""
        name, status = message.get("id"), message.get("status")
        if not isinstance(name, str) or not isinstance(status, str):
            return self
        known = self.layers.get(name, Layer())
        detail = message.get("progressDetail") or {}
        current, total = _count(detail.get("current")), _count(detail.get("total"))
        match status:
            case "Downloading":
                known = replace(known, downloaded=current, total=max(total, current, known.total))
            case "Extracting":
                known = replace(known, unpacked=current, downloaded=known.total, total=max(total, known.total))
            case "Download complete" | "Verifying Checksum":
                known = replace(known, downloaded=known.total)
            case "Pull complete" | "Already exists":
                known = replace(known, done=True)
            case "Pulling fs layer" | "Waiting":
                pass
            case _:
                return self
        layers = frozen_map({**self.layers, name: known})
        return PullProgress(layers, _risen(self.ratio, _ratio(layers)))

    def words(self) -> str:
        """`43 % (3.1 of 7.2 GiB)`."""
        if self.ratio is None:
            return "asking the registry"
        size = self.total_bytes
        unit, word = (GIB, "GiB") if size >= GIB else (MIB, "MiB")
        share = f"{int(self.ratio * 100)} %"
        return f"{share} ({self.downloaded_bytes / unit:.1f} of {size / unit:.1f} {word})" if size else share


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _ratio(layers: Mapping[str, Layer]) -> float | None:
    if not layers:
        return None
    total = sum(layer.total for layer in layers.values())
    if total == 0:
        return sum(layer.done for layer in layers.values()) / len(layers)
    came = sum(layer.total if layer.done else layer.downloaded for layer in layers.values())
    unpacked = sum(layer.total if layer.done else min(layer.unpacked, layer.total) for layer in layers.values())
    begun = sum(layer.done or layer.total > 0 for layer in layers.values()) / len(layers)
    # Layers that have not begun count as large as the others are on the mean.
    return begun * (came * _DOWNLOAD_SHARE + unpacked * (1 - _DOWNLOAD_SHARE)) / total


def _risen(former: float | None, ratio: float | None) -> float | None:
    if former is None or ratio is None:
        return ratio if former is None else former
    return max(former, min(1.0, ratio))


def why_no_room(expected_bytes: int | None, free_bytes: int | None, where: str) -> str | None:
    """Why the disk will not hold so much more; None: it will, or nobody knows."""
    if expected_bytes is None or free_bytes is None:
        return None
    needed = int(expected_bytes * ROOM_FACTOR)
    if needed <= free_bytes:
        return None
    return (
        f"the disk of {where} has {free_bytes / GIB:.1f} GiB free, {needed / GIB:.1f} GiB are needed; "
        "prune images there (`nebula images prune`), or give it a larger disk"
    )


def _status(codes: str) -> str:
    """A status of HTTP, and no part of a port, a digest or a name that stands in the same line."""
    return rf"(?<![\w:./@-])(?:{codes})(?![\w/@-])"


_MEANINGS = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (
            rf"unauthorized|authentication required|no basic auth|denied|forbidden|{_status('401|403')}",
            "the registry does not let this node in: run `docker login` there for the agent's user, or correct the name",
        ),
        (
            rf"manifest unknown|not found|name unknown|does not exist|{_status('404')}",
            "the registry has no such image: correct `image`; a tag may have been removed",
        ),
        (r"no space left on device", "the disk of Docker is full: prune images (`nebula images prune`)"),
        (
            rf"toomanyrequests|rate limit|{_status('429')}",
            "the registry limits how much is pulled: log in there, or use a mirror",
        ),
        (
            r"x509|certificate|server gave HTTP response to HTTPS client",
            "the registry's certificate is not trusted by Docker on this node",
        ),
        (
            r"no such host|lookup .* on|dial tcp|connection refused|timeout|timed out|i/o timeout|network is unreachable",
            "the registry is not reachable from this node: look at its network, proxy and DNS",
        ),
        (r"unexpected EOF|EOF|connection reset|filesystem layer verification failed|short read", "the pull broke off"),
        (r"no matching manifest", "the image does not exist for this machine's architecture"),
    )
)
#: Trying again cannot help these.
_FINAL = re.compile(
    r"unauthorized|authentication required|denied|manifest unknown|name unknown|not found|no matching manifest"
    r"|no space left|repository name|invalid reference",
    re.IGNORECASE,
)


def describe_pull_failure(text: str) -> str:
    """What the daemon said, with what to do about it."""
    line = " ".join(text.split())[:300]
    for pattern, meaning in _MEANINGS:
        if pattern.search(line):
            return f"{meaning} ({line})"
    return line


def is_final(text: str) -> bool:
    """Whether the same pull would fail in the same way again."""
    return _FINAL.search(text) is not None
