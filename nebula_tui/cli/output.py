"""What a command prints: tables for people, stable JSON and YAML for scripts; data on stdout, talk on stderr.

Everything that comes from the cluster passes the sanitiser before it reaches a terminal.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nebula_core.security.text import clean_text, escape_json

Row = Mapping[str, Any]
UNKNOWN = "–"


class Output(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Field:
    """One column: how its text is made of a row; `wide` columns only show with `-o wide`."""

    title: str
    text: Callable[[Row], str]
    right: bool = False
    wide: bool = False


def emit(value: Any, output: Output, fields: Sequence[Field] = (), rows: Sequence[Row] | None = None) -> None:
    """Prints `value` for scripts, or its `rows` (default: the value itself) as a table."""
    if output is Output.JSON:
        text = json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
        sys.stdout.write(escape_json(text) + "\n")
    elif output is Output.YAML:
        import yaml

        sys.stdout.write(yaml.safe_dump(value, allow_unicode=True, sort_keys=False))
    else:
        table(value if rows is None else rows, fields, wide=output is Output.WIDE)
    sys.stdout.flush()


def table(rows: Sequence[Row], fields: Sequence[Field], *, wide: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [field for field in fields if wide or not field.wide]
    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for field in shown:
        drawn.add_column(field.title, justify="right" if field.right else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(clean_text(field.text(row))) for field in shown))
    # Not on a terminal: nothing to fit into, so nothing may be cut.
    Console(width=None if sys.stdout.isatty() else 10_000).print(drawn)


def say(text: str) -> None:
    """A line for the person, on stderr."""
    sys.stderr.write(clean_text(text, newlines=True) + "\n")


def whole(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def percent(value: Any) -> str:
    return UNKNOWN if value is None else f"{value * 100:.0f}%"


def seconds(value: Any) -> str:
    """An age or a time: 480ms, 3.2s, 5m, 3h, 2d."""
    if value is None:
        return UNKNOWN
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "m"), (172_800, 3600, "h")):
        if value < limit:
            if unit == "s" and value < 1:
                return f"{value * 1000:.0f}ms"
            return f"{value / divisor:.1f}s" if unit == "s" and value < 10 else f"{value / divisor:.0f}{unit}"
    return f"{value / 86400:.0f}d"


def gib(value: Any) -> str:
    return UNKNOWN if value is None else f"{value / 2**30:.1f}"


def of(row: Row, *path: str) -> Any:
    """The value at a path of keys, None where a part is missing."""
    value: Any = row
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def word(row: Row, *path: str) -> str:
    value = of(row, *path)
    return UNKNOWN if value in (None, "") else str(value)
