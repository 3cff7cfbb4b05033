"""The order of rows: stable, unknown last, children with their parents, folds remembered."""

from hypothesis import given
from hypothesis import strategies as st

from nebula_tui.presenters.cells import Cell, Column, LazyRows, Row
from nebula_tui.presenters.rowfilter import parse_filter
from nebula_tui.widgets.rowmodel import RowModel, natural

COLUMNS = (Column("name", "NAME", 10), Column("load", "LOAD", 5, "right"))


def row(name: str, load: float | None = None, **more) -> Row:
    return Row(name, (Cell(name), Cell("–" if load is None else f"{load}", order=load)), **more)


def model(*rows: Row) -> RowModel:
    made = RowModel()
    made.set_columns(COLUMNS)
    made.set_rows(rows)
    return made


def sort(made: RowModel, key: str | None, *, descending: bool = False) -> list[str]:
    made.sort_column, made.descending = key, descending
    made.arrange()
    return list(made.shown)


def test_rows_come_in_the_order_given_until_sorted() -> None:
    made = model(row("c", 1), row("a", 3), row("b", 2))
    assert list(made.shown) == ["c", "a", "b"]
    assert sort(made, "load") == ["c", "b", "a"]
    assert sort(made, "load", descending=True) == ["a", "b", "c"]
    assert sort(made, "name") == ["a", "b", "c"]
    assert sort(made, None) == ["c", "a", "b"]


def test_unknown_is_last_in_both_directions() -> None:
    made = model(row("a"), row("b", 0), row("c", 2))
    assert sort(made, "load") == ["b", "c", "a"]
    assert sort(made, "load", descending=True) == ["c", "b", "a"]


def test_numbers_in_names_count_as_numbers() -> None:
    assert sorted(["node-10", "node-9", "Node-8"], key=natural) == ["Node-8", "node-9", "node-10"]


def test_a_filter_looks_at_text_and_columns() -> None:
    made = model(row("gpu-1", 10), row("gpu-2", 95), row("cpu-1", 99))
    made.filter = parse_filter("gpu load>90", ["name", "load"])
    made.arrange()
    assert list(made.shown) == ["gpu-2"]


def test_lazy_rows_are_made_only_when_looked_at() -> None:
    made: list[str] = []

    def make(id_: str) -> Row:
        made.append(id_)
        return row(id_)

    lazy = RowModel()
    lazy.set_columns(COLUMNS)
    lazy.sort_column = "load"
    lazy.set_rows(LazyRows([f"n{i}" for i in range(1000)], make, lambda id_, _: -int(id_[1:]), lambda id_: id_))
    assert lazy.shown[0] == "n999"
    assert made == []
    assert lazy.row("n999").id == "n999"
    assert lazy.row("n999").id == "n999"
    assert made == ["n999"]


TREE = (
    row("llama", 9, expandable=True),
    row("llama/r1", 2, depth=1),
    row("llama/r2", 7, depth=1, expandable=True),
    row("llama/r2/g0", 1, depth=2),
    row("qwen", 5, expandable=True, expanded=False),
    row("qwen/r1", 5, depth=1),
)


def drawn(made: RowModel) -> list[str]:
    return [made.prefix(id_) + id_.rpartition("/")[2] for id_ in made.shown]


def test_a_tree_has_branches() -> None:
    assert drawn(model(*TREE)) == ["▾ llama", "  ├ r1", "  └ ▾ r2", "    └ g0", "▸ qwen"]


def test_siblings_are_sorted_under_their_parent() -> None:
    made = model(*TREE)
    sort(made, "load", descending=False)
    assert drawn(made) == ["▸ qwen", "▾ llama", "  ├ r1", "  └ ▾ r2", "    └ g0"]
    sort(made, "load", descending=True)
    assert drawn(made) == ["▾ llama", "  ├ ▾ r2", "  │ └ g0", "  └ r1", "▸ qwen"]


def test_folds_survive_new_rows() -> None:
    made = model(*TREE)
    made.fold("llama", expanded=False)
    made.fold("qwen", expanded=True)
    made.set_rows(TREE)
    assert drawn(made) == ["▸ llama", "▾ qwen", "  └ r1"]
    assert made.expanded("llama") is False
    assert made.expanded("qwen/r1") is None
    made.fold_all(expanded=True)
    assert len(made.shown) == len(TREE)


def test_a_match_is_shown_with_its_parents_even_out_of_a_fold() -> None:
    made = model(*TREE)
    made.filter = parse_filter("qwen/r1")
    made.arrange()
    assert drawn(made) == ["▾ qwen", "  └ r1"]
    made.filter = parse_filter("g0")
    made.arrange()
    assert drawn(made) == ["▾ llama", "  └ ▾ r2", "    └ g0"]


def test_a_matching_parent_keeps_its_children() -> None:
    made = model(*TREE)
    made.filter = parse_filter("^llama")
    made.arrange()
    assert drawn(made) == ["▾ llama", "  ├ r1", "  └ ▾ r2", "    └ g0"]


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), max_size=30), st.booleans())
def test_unfolded_and_unfiltered_no_row_is_lost(shape: list[tuple[int, bool, bool]], descending: bool) -> None:
    rows = [
        row(f"n{i}", float(i % 5), depth=depth, expandable=expandable, expanded=expanded)
        for i, (depth, expandable, expanded) in enumerate(shape)
    ]
    made = model(*rows)
    made.fold_all(expanded=True)
    sort(made, "load", descending=descending)
    shown = list(made.shown)
    assert len(shown) == len(set(shown))
    assert set(shown) <= {r.id for r in rows}
    if all(
        expandable or i + 1 == len(shape) or shape[i + 1][0] <= depth for i, (depth, expandable, _) in enumerate(shape)
    ):
        assert len(shown) == len(rows)
    for place, id_ in enumerate(shown):
        assert made.index(id_) == place
