"""The TUI on a real terminal beside a real cluster: scale, logs, chat and drain by keys, as an operator does them."""

import sys

import pytest

from tests.support.terminal import Terminal
from tests.support.up import cluster, eventually

pytestmark = [pytest.mark.flow, pytest.mark.timeout(240)]
#: In a dialog once the server's plan is there: an Enter before that does nothing.
APPLY = "⏎ apply"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A cluster that may be scaled and drained."""
    with cluster(tmp_path_factory.mktemp("tui") / "data", "--gpus", "2") as running:
        yield running


@pytest.fixture(params=[(120, 40), (80, 24)], ids=["120x40", "80x24"])
def tui(own, request):
    columns, rows = request.param
    command = [sys.executable, "-m", "nebula_tui", "--data", str(own.data), "tui"]
    with Terminal(command, columns=columns, rows=rows) as terminal:
        terminal.until("LIVE", "demo", "SIM")
        yield terminal


def ready(own):
    return sorted(row["id"] for row in own.replicas() if row["phase"] == "ready")


def test_scale_tail_chat_and_scale_back_by_keys(own, tui):
    before = len(ready(own))
    tui.type("3")
    tui.until("[3 Models]", "MODEL / REPLICA", "demo")
    tui.type("s")
    tui.until("plan (dry run)", f"[ {before} ]", APPLY)
    tui.type("Right")
    tui.until(f"[ {before + 1} ]", "start", "demo/r", APPLY)
    tui.type("Enter")
    tui.until(f"{before + 1}/{before + 1} ready")
    assert len(ready(own)) == before + 1

    tui.type("l")
    tui.until("FOLLOW", "demo/r")
    tui.type("7")
    tui.until("Ask something")
    tui.write("say a few words")
    tui.until("say a few words")
    tui.type("Enter")
    tui.until("prefix_cache_aware", "TTFT", "ITL", " in 1")
    tui.type("Escape")
    tui.until("i write")

    tui.type("3")
    tui.until("[3 Models]", "MODEL / REPLICA")
    tui.type("s")
    tui.until("plan (dry run)", APPLY)
    tui.type("Left")
    tui.until(f"[ {before} ]", "drain", "demo/r", APPLY)
    tui.type("Enter")
    eventually(lambda: len(own.replicas()) == before, "scaled back")
    tui.type("8")
    tui.until("scale", "placed", "drain")


def test_a_node_is_drained_and_opened_again_by_keys(own, tui):
    own.api("POST", "/deployments/demo/scale", {"replicas": 2})
    eventually(lambda: len(ready(own)) == len(own.replicas()) == 2, "both ready")
    tui.type("2")
    tui.until("[2 Nodes]", "sim-1", "sim-2")
    tui.type("d")
    tui.until("drain sim-1", APPLY)
    tui.type("Enter")
    eventually(lambda: own.api("GET", "/nodes/sim-1")["draining"], "drain is ordered")
    eventually(lambda: {row["node"] for row in own.replicas()} == {"sim-2"}, "moved to sim-2")
    tui.type("U")
    tui.until("uncordon sim-1", APPLY)
    tui.type("Enter")
    eventually(lambda: not own.api("GET", "/nodes/sim-1")["draining"], "open again")


def test_it_ends_on_q(own):
    command = [sys.executable, "-m", "nebula_tui", "--data", str(own.data), "tui"]
    with Terminal(command) as terminal:
        terminal.until("LIVE")
        terminal.type("q")
        terminal.until_ended()
