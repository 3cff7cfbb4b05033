"""Single requests as rows, sums and lines; and the request that a line of a log speaks of."""

import pytest

from nebula_core.records.views import RequestsPage, RequestView
from nebula_tui.presenters import requests
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.text import joined
from tests.support.fleet import requests_page


def view(**changes: object) -> RequestView:
    fields = {"id": "req-0123456789-ab", "proxy": "p", "state": "streaming", "path": "/v1/completions"}
    return RequestView.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("INFO Added request chatcmpl-req-0123456789-ab-0.", "req-0123456789-ab"),
        ("Received request cmpl-my.own_id: prompt", "my.own_id"),
        ('{"action":"request","request_id":"mine-1","status":200}', "mine-1"),
        ("took req-0123456789-ab over", "req-0123456789-ab"),
        ("INFO  Avg prompt 9132.4 tok/s", None),
        ("", None),
    ],
)
def test_a_line_of_a_log_names_its_request(text: str, name: str | None) -> None:
    assert requests.request_in(text) == name


def test_states_have_words_glyphs_and_colours() -> None:
    def cell(**changes: object) -> tuple[str, Severity]:
        found = requests.state_cell(view(**changes))
        return found.text, found.severity

    assert cell() == ("streaming", Severity.OK)
    assert cell(state="waiting") == ("○ waiting", Severity.INFO)
    assert cell(stalled="engine") == ("▲ stalled", Severity.CRIT)
    assert cell(stalled="client") == ("● slow cl.", Severity.WARN)
    assert cell(state="ended", outcome="ok", status=200) == ("ok", Severity.DIM)
    assert cell(state="ended", outcome="client_gone", status=499) == ("client_gone", Severity.DIM)
    assert cell(state="ended", outcome="broken", status=502) == ("▲ broken", Severity.CRIT)
    assert cell(state="ended", outcome="overloaded", status=429) == ("● overloaded", Severity.WARN)


def test_rows_keep_their_order_and_unknown_is_a_dash() -> None:
    pairs = requests.request_rows([view(), view(), view(id="mine", model="m", replica="m-r1")], stale=False)
    assert [row.id for row, _ in pairs] == ["req-0123456789-ab", "req-0123456789-ab#2", "mine"]
    texts = [cell.text for cell in pairs[0][0].cells]
    assert texts[:4] == ["0123-ab", "–", "–", "–"]
    assert texts[5:11] == ["–"] * 6
    assert pairs[2][0].cells[3].text == "r1"


def test_sums_and_faults_are_of_what_is_open() -> None:
    page = requests_page()
    rows = {row.id: [cell.text for cell in row.cells] for row in requests.group_rows(page.items, "key", stale=False)}
    assert sum(int(row[1]) for row in rows.values()) == 26
    assert set(rows) == {"batch", "prod", "eval"}
    assert requests.group_rows([], "model", stale=False) == []
    [unknown] = requests.group_rows([view()], "model", stale=False)
    assert unknown.cells[-1].text == "–"  # an age that nobody knows is no age of 0
    faulty = [one for one in page.items if requests.is_faulty(one)]
    assert {one.outcome for one in faulty if one.state == "ended"} == {"overloaded", "broken"}
    assert not requests.is_faulty(view())


def test_the_head_and_what_is_not_listed() -> None:
    fleet = FleetState()
    assert joined(requests.page_line(fleet, None)).startswith(" in flight – ▏– req/s")
    line = joined(requests.page_line(fleet, requests_page()))
    assert line.startswith(" in flight 1,214 ▏waiting 88 ▏stalled>2s 3 ▲ ▏prefill 102 ▏streaming 1,019")
    assert requests.shown_note(RequestsPage()) is None
    note = requests.shown_note(RequestsPage(silent=("a", "b", "c", "d")))
    assert note is not None
    assert joined(note) == " ● no answer from a, b, c …: what they have open is not shown"


@pytest.mark.parametrize("width", [40, 76, 116])
def test_the_detail_fits(width: int) -> None:
    for one in requests_page().items:
        lines = requests.detail_lines(one, width)
        assert joined(lines[0]).startswith(one.id)
        assert all(len(joined(line)) <= width for line in lines if "█" in joined(line))
    silent = requests.detail_lines(view(stalled="client", silent_seconds=3.0, age_seconds=9.0, ttft_seconds=1.0), 80)
    assert any("the client does not read" in joined(line) for line in silent)
