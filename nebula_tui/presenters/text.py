"""Lines of text in pieces of different severity, and the few sentences several presenters share."""

from nebula_tui.presenters.cells import Severity, clock_time

Span = tuple[str, Severity]
TextLine = tuple[Span, ...]

BLANK: TextLine = ()


def plain(text: str, severity: Severity = Severity.NORMAL) -> TextLine:
    return ((text, severity),)


def joined(line: TextLine) -> str:
    return "".join(text for text, _ in line)


def labelled(label: str, *spans: Span, width: int = 7) -> TextLine:
    """`runs   llama/r1 …`: a dim label in a column of its own."""
    return ((label.ljust(width), Severity.DIM), *spans)


def spans_with(separator: str, parts: list[TextLine]) -> TextLine:
    """Joins lines to one, with a dim separator between."""
    found: list[Span] = []
    for place, part in enumerate(parts):
        if place:
            found.append((separator, Severity.DIM))
        found.extend(part)
    return tuple(found)


def local_time(at: float, utc_offset_seconds: float, *, digits: int = 0) -> str:
    """Unix seconds as the operator's time of day."""
    return clock_time((at + utc_offset_seconds) % 86_400, digits=digits)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
