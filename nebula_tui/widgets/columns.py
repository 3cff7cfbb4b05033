"""Which columns of a table are shown, where, and how wide: a function of the columns and the room."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nebula_tui.presenters.cells import Column


@dataclass(frozen=True, slots=True)
class Slot:
    """A shown column; `index` is its place in a row's cells, `x` its first cell on the line."""

    column: Column
    index: int
    x: int
    width: int


def lay_out(columns: Sequence[Column], room: int, *, start: int = 0, hidden: Collection[str] = ()) -> tuple[Slot, ...]:
    """Columns leave by priority until the rest fit at their narrowest; then they grow to what they like, the flexible
    one further. Gaps widen to two cells where the room allows, to four where no column is flexible.
    """
    chosen = [(i, c) for i, c in enumerate(columns) if c.key not in hidden]

    def need(gap: int = 1) -> int:
        return sum(c.narrowest for _, c in chosen) + gap * max(0, len(chosen) - 1)

    while need() > room and any(c.priority for _, c in chosen):
        # Among columns of the same priority the one further right leaves first.
        chosen.remove(max(chosen, key=lambda item: (item[1].priority, item[0])))
    widths = [c.narrowest for _, c in chosen]
    spare = room - need()
    for place, (_, column) in enumerate(chosen):
        grown = max(0, min(column.width - widths[place], spare))
        widths[place] += grown
        spare -= grown
    gap, gaps = 1, len(chosen) - 1
    widest = 2 if any(column.flex for _, column in chosen) else 4
    while gaps > 0 and spare >= gaps and gap < widest:
        gap, spare = gap + 1, spare - gaps
    for place, (_, column) in enumerate(chosen):
        if column.flex and spare > 0:
            widths[place] += spare
            break
    slots, x = [], start
    for (index, column), width in zip(chosen, widths, strict=True):
        shown = min(width, start + room - x)  # even columns that never leave are cut at the edge
        if shown <= 0:
            break
        slots.append(Slot(column, index, x, shown))
        x += width + gap
    return tuple(slots)
