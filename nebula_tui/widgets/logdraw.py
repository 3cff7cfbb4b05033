"""One log line as styled pieces: level coloured, hits marked, cut or wrapped to the room there is."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import get_character_cell_size
from rich.style import Style

from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.loglines import LogEntry, find_level
from nebula_tui.widgets.painted import Palette, text_width

Piece = tuple[str, Style]
_MOST_SUBLINES: Final = 200
"""A line wrapped further than this is cut: one line of a megabyte must not become the whole log."""


def styled_text(entry: LogEntry, pattern: re.Pattern[str] | None, palette: Palette) -> list[Piece]:
    """The text with its level word coloured and hits marked."""
    text = entry.text
    severity = entry.level.severity
    base = palette.dim if severity is Severity.DIM else palette.normal
    spans: list[tuple[int, int, Style]] = []
    if severity in (Severity.WARN, Severity.CRIT) and (span := find_level(text)):
        spans.append((*span, palette.of(severity)))
    pieces = list(_styled(text, spans, base))
    if pattern is None:
        return pieces
    marked: list[Piece] = []
    hits = [found.span() for found in pattern.finditer(text) if found.end() > found.start()]
    if not hits:
        return pieces
    at = 0
    for low, high in hits:
        marked += _styled(text[at:low], [(a - at, b - at, s) for a, b, s in spans], base)
        marked.append((f"«{text[low:high]}»", palette.match))
        at = high
    marked += _styled(text[at:], [(a - at, b - at, s) for a, b, s in spans], base)
    return marked


def _styled(text: str, spans: Sequence[tuple[int, int, Style]], base: Style) -> Iterator[Piece]:
    """`text` in pieces; spans may lie partly or wholly outside of it."""
    at = 0
    for start, end, style in spans:
        low, high = max(start, at), min(end, len(text))
        if low < high:
            if low > at:
                yield text[at:low], base
            yield text[low:high], style
            at = high
    if at < len(text):
        yield text[at:], base


def cut(pieces: Sequence[Piece], skip: int, room: int) -> Iterator[Piece]:
    """The part of a line from cell `skip` on, `room` cells wide at most."""
    for text, style in pieces:
        if room <= 0:
            return
        if text.isascii():
            shown = text[skip : skip + room]
            skip = max(0, skip - len(text))
            room -= len(shown)
        else:
            kept = []
            for char in text:
                size = get_character_cell_size(char)
                if skip > 0:
                    skip -= size
                elif room >= size:
                    kept.append(char)
                    room -= size
                else:
                    room = 0
                    break
            shown = "".join(kept)
        if shown:
            yield shown, style


def wrap(pieces: Sequence[Piece], room: int) -> list[tuple[Piece, ...]]:
    """Broken at the edge, not at words: a log line is data, and copies must not lose or gain spaces."""
    out: list[list[Piece]] = [[]]
    left = room
    for text, style in pieces:
        rest = text
        while rest:
            taken = rest[:left] if rest.isascii() else _take(rest, left)
            if taken:
                out[-1].append((taken, style))
                left -= text_width(taken)
                rest = rest[len(taken) :]
            if rest:
                if len(out) == _MOST_SUBLINES or (not taken and not out[-1]):
                    return [tuple(part) for part in out]
                out.append([])
                left = room
    return [tuple(part) for part in out]


def _take(text: str, room: int) -> str:
    """As many characters as fit into `room` cells."""
    used = 0
    for at, char in enumerate(text):
        used += get_character_cell_size(char)
        if used > room:
            return text[:at]
    return text
