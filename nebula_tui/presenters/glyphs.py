"""Numbers as glyphs: meters, sparklines, braille charts and heat, as plain text.

Every function takes values (None is unknown) and sizes in cells, and gives strings; none knows a colour. Heat goes
through five shades so that it survives grey; unknown is drawn unlike zero everywhere: zero is the lowest bar or dot,
unknown is a gap.

Braille: a cell is 2 dots wide and 4 high. Dots of the left column, from below, are bits 0x40, 0x04, 0x02, 0x01, of the
right one 0x80, 0x20, 0x10, 0x08; a filled column of n dots is the sum of its n lowest.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

METER_FULL: Final = "■"
METER_EMPTY: Final = "·"
GAP: Final = "┄"
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
SHADES: Final = "·░▒▓█"
_LEFT: Final = (0x00, 0x40, 0x44, 0x46, 0x47)
_RIGHT: Final = (0x00, 0x80, 0xA0, 0xB0, 0xB8)
_BRAILLE: Final = tuple(
    tuple(" " if left + right == 0 else chr(0x2800 + left + right) for right in _RIGHT) for left in _LEFT
)


class Mark(StrEnum):
    """States that take the place of a value in a heat cell."""

    DOWN = "▲"
    STALE = "~"
    DRAINING = "‖"
    CORDONED = "⊘"
    LOADING = "↻"


def meter(fraction: float | None, width: int, *, full: str = METER_FULL, empty: str = METER_EMPTY) -> str:
    """`■■■■··`: `fraction` of `width` cells. Anything above zero shows a cell, anything below one leaves one empty."""
    if width <= 0:
        return ""
    if fraction is None or fraction <= 0:
        return empty * width
    if fraction >= 1:
        return full * width
    filled = round(fraction * width)
    filled = max(1, min(filled, width - 1)) if width > 1 else filled
    return full * filled + empty * (width - filled)


def top_of(values: Sequence[float | None], floor: float = 0.0) -> float:
    """The largest known value, at least `floor`."""
    return max((v for v in values if v is not None), default=floor) if values else floor


def sparkline(values: Sequence[float | None], width: int, maximum: float | None = None) -> str:
    """`▁▃█▅`: the newest `width` values, newest at the right; unknown is a space."""
    shown = values[-width:] if width > 0 else ()
    top = top_of(shown) if maximum is None else maximum
    drawn = "".join(
        " " if v is None else _BLOCKS[0] if top <= 0 or v <= 0 else _BLOCKS[min(7, int(v / top * 7.999))] for v in shown
    )
    return drawn.rjust(width)


def heat(fraction: float | None, mark: Mark | None = None) -> str:
    """One glyph for one GPU: a mark where there is one, else a shade; unknown is a space."""
    if mark is not None:
        return mark.value
    if fraction is None:
        return " "
    # The shades mean idle, up to 25, 50, 75 and 100 %.
    return SHADES[0] if fraction < 0.05 else SHADES[min(4, 1 + int(min(fraction, 1.0) * 3.999))]


def _level(above: float, span: float, levels: int) -> int:
    """How many dots, at least one. Compared before it is divided: a tiny span would make it infinite."""
    if span <= 0 or above <= 0:
        return 1
    return levels if above >= span else max(1, round(above / span * levels))


def braille(
    values: Sequence[float | None], width: int, height: int, *, maximum: float | None = None, minimum: float = 0.0
) -> list[str]:
    """A filled chart of `height` lines, two values to a cell, newest at the right.

    The scale is `minimum`..`maximum`; without a maximum, the largest value shown. A known value has at least one dot;
    a cell that knows neither of its values shows `┄` on the lowest line, once the history has begun.
    """
    if width <= 0 or height <= 0:
        return []
    shown = list(values[-2 * width :])
    top = top_of(shown) if maximum is None else maximum
    span = top - minimum
    levels = height * 4
    drawn = [None if v is None else _level(v - minimum, span, levels) for v in shown]
    dots: list[int | None] = [*([None] * (2 * width - len(shown))), *drawn]
    begun = len(dots) - len(shown)
    lines = []
    for row in range(height):
        floor = (height - 1 - row) * 4
        cells = []
        for x in range(0, 2 * width, 2):
            left, right = dots[x], dots[x + 1]
            if left is None and right is None:
                cells.append(GAP if floor == 0 and x + 1 >= begun and shown else " ")
                continue
            low = 0 if left is None else min(4, max(0, left - floor))
            high = 0 if right is None else min(4, max(0, right - floor))
            cells.append(_BRAILLE[low][high])
        lines.append("".join(cells))
    return lines
