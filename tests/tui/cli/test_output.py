"""What a command prints."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.cli.errors import CommandError
from nebula_tui.cli.output import Field, Output, emit, percent, seconds, whole
from nebula_tui.cli.stream import duration

FIELDS = (Field("NAME", lambda row: row["name"]), Field("WIDE", lambda _: "w", wide=True))


def test_a_table_shows_wide_columns_only_when_asked(capsys):
    emit([{"name": "a"}], Output.TABLE, FIELDS)
    assert capsys.readouterr().out.split() == ["NAME", "a"]
    emit([{"name": "a"}], Output.WIDE, FIELDS)
    assert capsys.readouterr().out.split() == ["NAME", "WIDE", "a", "w"]


def test_json_is_one_line_when_piped(capsys):
    emit([{"name": "ä"}], Output.JSON, FIELDS)
    out = capsys.readouterr().out
    assert json.loads(out) == [{"name": "ä"}]
    assert out.count("\n") == 1


@pytest.mark.parametrize("payload", ["\x1b]52;c;aGk=\x07x", "\x9b2J", "[red]x[/red]", "a\x00b", "\u202eevil"])
def test_names_of_others_cannot_drive_the_terminal(capsys, payload):
    emit([{"name": payload}], Output.TABLE, FIELDS)
    out = capsys.readouterr().out
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c == "\u202e" for c in out)
    if "[red]" in payload:
        assert "[red]x[/red]" in out


def test_a_long_name_is_not_cut_when_piped(capsys):
    emit([{"name": "n" * 300}], Output.TABLE, FIELDS)
    assert "n" * 300 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0421, "42ms"), (3.21, "3.2s"), (42, "42s"), (300, "5m"), (7200, "2h"), (259_200, "3d")],
)
def test_seconds(value, text):
    assert seconds(value) == text


def test_unknown_is_never_zero():
    assert (whole(None), percent(None), whole(0), percent(0)) == ("–", "–", "0", "0%")


@given(st.integers(0, 10_000), st.sampled_from("smhd"))
def test_duration_reads_what_people_write(count, unit):
    assert duration(f"{count}{unit}") == count * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "-3s", "1.5h"])
def test_duration_refuses_the_rest(text):
    with pytest.raises(CommandError):
        duration(text)
