"""What differs between versions of an engine, as data: which option or metric name which versions have."""

from collections.abc import Mapping
from typing import NamedTuple

Version = tuple[int, ...]


class Known(NamedTuple):
    """From `since` on and before `until`; None is no bound. `unsure` is the answer while the version is unknown."""

    since: Version | None = None
    until: Version | None = None
    unsure: bool = True

    def to(self, version: Version | None) -> bool:
        """Whether this version has it."""
        if version is None:
            return self.unsure
        return (self.since is None or version >= self.since) and (self.until is None or version < self.until)


ALWAYS = Known()


def knows(table: Mapping[str, Known], name: str, version: Version | None) -> bool:
    """What stands in no table was always there."""
    return table.get(name, ALWAYS).to(version)


def parsed(text: str | None) -> Version | None:
    """`0.11.0rc2+cpu` is (0, 11, 0); None for what begins with no number."""
    numbers: list[int] = []
    for part in (text or "").lstrip("v").split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or None
