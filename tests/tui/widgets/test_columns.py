"""Columns: the important ones stay, the rest share the room, none runs over the edge."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.presenters.cells import Column
from nebula_tui.widgets.columns import lay_out

COLUMNS = (
    Column("name", "NAME", 12, min_width=6),
    Column("state", "STATE", 8, priority=1),
    Column("util", "UTIL", 14, "right", 2, 5),
    Column("trend", "TREND", 10, priority=3, flex=True),
)


def keys(room: int) -> list[str]:
    return [slot.column.key for slot in lay_out(COLUMNS, room)]


def test_columns_leave_by_priority() -> None:
    assert keys(60) == ["name", "state", "util", "trend"]
    assert keys(31) == ["name", "state", "util"]
    assert keys(16) == ["name", "state"]
    assert keys(8) == ["name"]


def test_a_column_of_priority_0_never_leaves_but_is_cut() -> None:
    assert [(slot.column.key, slot.width) for slot in lay_out(COLUMNS, 4)] == [("name", 4)]
    assert lay_out(COLUMNS, 0) == ()


def test_room_left_goes_to_widths_then_gaps_then_the_flexible_column() -> None:
    assert [slot.width for slot in lay_out(COLUMNS, 32)] == [6, 8, 5, 10]
    assert [slot.width for slot in lay_out(COLUMNS, 47)] == [12, 8, 14, 10]
    wide = lay_out(COLUMNS, 60)
    assert [slot.width for slot in wide] == [12, 8, 14, 20]
    assert [slot.x for slot in wide] == [0, 14, 24, 40]


def test_hidden_columns_keep_their_place_in_the_row() -> None:
    slots = lay_out(COLUMNS, 60, hidden={"state"})
    assert [(slot.column.key, slot.index) for slot in slots] == [("name", 0), ("util", 2), ("trend", 3)]


@given(
    st.lists(
        st.builds(
            Column,
            key=st.uuids().map(str),
            title=st.just("T"),
            width=st.integers(1, 30),
            priority=st.integers(0, 5),
            min_width=st.integers(0, 10),
            flex=st.booleans(),
        ),
        max_size=12,
    ),
    st.integers(0, 200),
    st.integers(0, 5),
)
def test_columns_stay_inside_and_apart(columns: list[Column], room: int, start: int) -> None:
    end = start
    for slot in lay_out(columns, room, start=start):
        assert slot.x >= end
        assert slot.width > 0
        end = slot.x + slot.width + 1
        assert slot.x + slot.width <= start + room
