"""Ten minutes of figures, one frame a second: rings of many series that cost a few bytes per sample.

Theory. A fleet has thousands of series and a screen shows a few of them, so frames are kept *time first*: one packed
array per tick with a slot per series. Recording is one pass over the current values; reading one series picks its slot
from each frame. A slot is given when a name is first seen and kept while the name is known; a name that has been gone
for a whole window gives its slot back, so churn of replicas does not grow the frames.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from typing import Final

FRAMES: Final = 600


class History:
    """Series by name, None where unknown; oldest first when read."""

    def __init__(self, frames: int = FRAMES) -> None:
        self._frames: deque[array[float]] = deque(maxlen=frames)
        self._slots: dict[str, int] = {}
        self._last_seen: dict[str, int] = {}
        self._free: list[int] = []
        self._tick = 0

    def __len__(self) -> int:
        return len(self._frames)

    def record(self, values: Mapping[str, float | None]) -> None:
        """One frame; a name that is missing is unknown at this tick."""
        self._tick += 1
        for name in values:
            if name not in self._slots:
                self._slots[name] = self._free.pop() if self._free else len(self._slots) + len(self._free)
            self._last_seen[name] = self._tick
        size = len(self._slots) + len(self._free)
        frame = array("f", [nan]) * size
        slots = self._slots
        for name, value in values.items():
            if value is not None:
                frame[slots[name]] = value
        self._frames.append(frame)
        if self._tick % 60 == 0:
            self._forget()

    def read(self, name: str, count: int = FRAMES) -> tuple[float | None, ...]:
        """The newest `count` values of one series."""
        slot = self._slots.get(name)
        if slot is None:
            return ()
        skip = max(0, len(self._frames) - count)
        found = []
        for place, frame in enumerate(self._frames):
            if place >= skip:
                value = frame[slot] if slot < len(frame) else nan
                found.append(None if isnan(value) else value)
        return tuple(found)

    def downsampled(self, name: str, points: int) -> tuple[float | None, ...]:
        """The whole window in at most `points` values, each the largest of its share."""
        values = self.read(name)
        if len(values) <= points or points <= 0:
            return values
        return tuple(
            _largest(values[place * len(values) // points : (place + 1) * len(values) // points])
            for place in range(points)
        )

    def _forget(self) -> None:
        window = self._frames.maxlen or FRAMES
        gone = [name for name, tick in self._last_seen.items() if self._tick - tick > window]
        for name in gone:
            self._free.append(self._slots.pop(name))
            del self._last_seen[name]


def shape(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """A trend as its shape, for a line one cell high: 0 is lowest, and what hardly moves is a quiet line, not a wall.

    The height of the smallest value is its share of the largest, lowered the more the less the series moves, so that a
    change of a tenth can be seen. The figure beside a trend tells how much it is; the trend tells how it went.
    """
    known = [value for value in values if value is not None]
    top = max(known, default=0.0)
    low = min(known, default=0.0)
    if top <= 0:
        return tuple(values)
    if top - low < 0.02 * top:
        return tuple(None if value is None else 0.0 for value in values)
    floor = low - 0.35 * (top - low)
    floor = max(0.0, floor)
    return tuple(None if value is None else (value - floor) / (top - floor) for value in values)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
