"""Plans, commands, chat figures, merged logs, the link's face: decisions in words."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import Bucket, NodeVerdict, PlacementChange, Plan, PlanEntry, PlannedFetch, Unplaceable
from nebula_core.records.store_memory import StoreDoubt
from nebula_core.records.views import PlanView
from nebula_tui.presenters import chat, chrome, command, logs, plan
from nebula_tui.presenters.cells import Severity
from nebula_tui.presenters.chat import Pane, Progress
from nebula_tui.presenters.command import Act, Help, Quit, SetTheme, Show, Unknown
from nebula_tui.presenters.fleet import FleetState
from nebula_tui.presenters.loglines import LogEntry, LogFilter, make_entry
from nebula_tui.presenters.plan import Action
from nebula_tui.presenters.text import joined
from tests.support.fleet import small_fleet

NODES, DEPLOYMENTS, REPLICAS = ("sim-a", "sim-b"), ("demo",), ("demo-r1", "demo-r2")


@pytest.fixture
def fleet() -> FleetState:
    state = FleetState()
    state.take_snapshot(small_fleet(), 100.0)
    return state


def change(name: str, wanted: Wanted, reason: str = "because") -> PlacementChange:
    placed = Placement(
        replica=name,
        deployment="demo",
        node="sim-b",
        gpus=("GPU-sim-b-1",),
        wanted=wanted,
        generation=4,
        spec=DeploymentSpec(source="sim"),
        epoch=1,
        revision=2,
    )
    return PlacementChange(replica=name, placement=placed, reason=reason)


def view(*changes: PlacementChange, **more: object) -> PlanView:
    fields = {name: more.pop(name) for name in ("entries", "unplaceable", "brake") if name in more}
    made = Plan(changes=changes, revision=9, **fields)
    return PlanView(dry_run=True, summary=made.summary, plan=made, **more)


# ------------------------------------------------------------------------------------------------------------ plans


def test_a_start_names_its_place_and_reason(fleet: FleetState) -> None:
    lines = [
        joined(line)
        for line in plan.plan_lines(fleet, view(change("demo-r3", Wanted.RUN), estimated_ready_seconds=48.0))
    ]
    assert lines == [
        "start   demo/r3  sim-b · gpu 1",
        "        because",
        "",
        "effect  0 open requests affected · ready in about 48s",
    ]


def test_what_has_to_come_to_a_disk_first_is_named_with_its_size(fleet: FleetState) -> None:
    fetches = [
        PlannedFetch(node="gpu-a1", kind="model", name="Qwen/Qwen2.5-7B-Instruct", origin="hub", size_bytes=16 << 30),
        PlannedFetch(node="gpu-a1", kind="image", name="vllm/vllm-openai:v0.10.0", origin="docker.io"),
        PlannedFetch(
            node="gpu-a2", kind="model", name="s3://m/q", origin="s3", size_bytes=16 << 30, here_bytes=1 << 30
        ),
        PlannedFetch(node="gpu-a3", kind="model", name="s3://m/q", origin="s3"),
    ]
    lines = [joined(line) for line in plan.plan_lines(fleet, view(change("demo-r3", Wanted.RUN), fetches=fetches))]
    assert lines[2:] == [
        "fetch   gpu-a1 fetches Qwen/Qwen2.5-7B-Instruct from the",
        "        hub (16.0 GiB)",
        "pull    gpu-a1 pulls vllm/vllm-openai:v0.10.0 from",
        "        docker.io (size unknown)",
        "fetch   gpu-a2 fetches s3://m/q from S3 (16.0 GiB, 1.0",
        "        GiB of it there)",
        "        … and 1 more",
        "",
        "effect  0 open requests affected · ready: unknown, never loaded before",
    ]
    assert all(len(line) <= plan.WIDTH for line in lines[:-1])
    [*_, effect] = plan.plan_lines(fleet, view(fetches=fetches, estimated_ready_seconds=48.0))
    assert joined(effect) == "effect  0 open requests affected · ready about 48s after that"


def test_what_goes_tells_its_open_requests(fleet: FleetState) -> None:
    lines = [
        joined(line)
        for line in plan.plan_lines(fleet, view(change("demo-r2", Wanted.DRAIN), inflight_affected=6, last_ready=True))
    ]
    assert lines[0] == "drain   demo/r2  sim-b · gpu 1 · 6 in flight"
    assert "6 open requests affected" in lines[-2]
    assert "the last ready replica goes" in lines[-1]


def test_what_does_not_fit_says_why_per_node(fleet: FleetState) -> None:
    blocked = Unplaceable(
        deployment="demo",
        count=2,
        reason="needs 2 GPUs with 40 GiB",
        verdicts=(
            NodeVerdict(node="sim-a", fits=False, reason="best has 31 GiB"),
            NodeVerdict(node="sim-b", fits=True, reason="ok"),
        ),
    )
    lines = [joined(line) for line in plan.plan_lines(fleet, view(unplaceable=(blocked,)))]
    assert lines[:2] == ["blocked ▲ 2 × demo: needs 2 GPUs with 40 GiB", "        sim-a: best has 31 GiB"]


def test_brake_and_nothing_to_do(fleet: FleetState) -> None:
    assert joined(plan.plan_lines(fleet, view(brake="most nodes vanished"))[0]) == "brake   ▲ most nodes vanished"
    assert joined(plan.plan_lines(fleet, view())[0]) == "plan    nothing to do"


def test_a_long_plan_says_how_much_is_left_out(fleet: FleetState) -> None:
    lines = plan.plan_lines(fleet, view(*(change(f"demo-r{place}", Wanted.RUN) for place in range(40))))
    assert len(lines) < 20
    assert any("more" in joined(line) for line in lines)


@pytest.mark.parametrize(
    ("given", "action", "asked"),
    [
        (view(change("demo-r3", Wanted.RUN)), Action("scale", "deployment", "demo", 3), False),
        (view(change("demo-r2", Wanted.DRAIN)), Action("scale", "deployment", "demo", 1), False),
        (view(change("demo-r2", Wanted.DRAIN), last_ready=True), Action("drain", "replica", "demo-r2"), True),
        (view(change("demo-r1", Wanted.STOP), change("demo-r2", Wanted.STOP)), Action("drain", "node", "sim-a"), True),
        (view(), Action("scale", "deployment", "demo", 0), True),
        (
            view(
                entries=tuple(
                    PlanEntry(bucket=Bucket.MOVING, deployment="demo", replica=name, reason="r") for name in REPLICAS
                )
            ),
            Action("drain", "node", "sim-a"),
            True,
        ),
        (view(), Action("cordon", "node", "sim-a"), False),
    ],
)
def test_the_name_is_asked_when_much_would_go(given: PlanView, action: Action, asked: bool) -> None:
    assert plan.asks_name(given, action) is asked


def test_the_same_from_the_shell() -> None:
    assert Action("scale", "deployment", "demo", 3).command == "nebula scale demo 3"
    assert Action("drain", "node", "sim-a").command == "nebula drain sim-a"


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("nodes", Show("nodes")),
        (":models /qwen kv>90", Show("models", filter="qwen kv>90")),
        ("logs demo-r1", Show("logs", "demo-r1")),
        ("scale demo=3", Act(Action("scale", "deployment", "demo", 3))),
        ("scale demo 3 --dry-run", Act(Action("scale", "deployment", "demo", 3))),
        ("scale demo", Act(Action("scale", "deployment", "demo"))),
        ("drain sim-a", Act(Action("drain", "node", "sim-a"))),
        ("drain demo-r1", Act(Action("drain", "replica", "demo-r1"))),
        ("restart demo", Act(Action("restart", "deployment", "demo"))),
        ("uncordon sim-b", Act(Action("uncordon", "node", "sim-b"))),
        ("theme cb-safe", SetTheme("cb-safe")),
        ("q", Quit()),
        ("?", Help()),
    ],
)
def test_commands(line: str, meant: command.Command) -> None:
    assert command.parse(line, nodes=NODES, deployments=DEPLOYMENTS, replicas=REPLICAS) == meant


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("", "say what to do"),
        ("drian sim-a", "did you mean 'drain'"),
        ("scale demmo=3", "did you mean 'demo'"),
        ("scale demo=many", "scale NAME=N"),
        ("cordon demo", "no node 'demo'"),
        ("drain", "say what to drain"),
    ],
)
def test_what_is_not_understood_says_what_would_be(line: str, hint: str) -> None:
    meant = command.parse(line, nodes=NODES, deployments=DEPLOYMENTS, replicas=REPLICAS)
    assert isinstance(meant, Unknown)
    assert hint in meant.message


@given(st.text(max_size=60))
def test_parsing_never_fails(line: str) -> None:
    command.parse(line, nodes=NODES, deployments=DEPLOYMENTS, replicas=REPLICAS)
    command.complete(line, nodes=NODES, deployments=DEPLOYMENTS, replicas=REPLICAS)


def test_completion() -> None:
    def complete(line: str) -> str | None:
        return command.complete(line, nodes=NODES, deployments=DEPLOYMENTS, replicas=REPLICAS)

    assert complete("dra") == "drain"
    assert complete("drain si") == "drain sim-"
    assert complete("logs demo-r1") == "logs demo-r1"
    assert complete("scale x") is None


# -------------------------------------------------------------------------------------------------------------- chat


def test_the_life_of_an_answer() -> None:
    pane = Pane().asked("why", 10.0)
    assert chat.pane_note(pane, 10.4) == ("waiting 0.4s", Severity.INFO)
    pane = pane.opened("demo-r1", "least_pending").grown("Because ", 1, 0.21, 10.21).grown("of that", 2, None, 10.31)
    assert pane.busy
    assert chat.figures(pane) == "~20 tok/s  ~3 tok  ITL 50ms"
    pane = pane.done("stop", 12, 5)
    assert pane.text == "Because of that"
    assert chat.pane_note(pane, 99.0) == ("TTFT 210ms", Severity.NORMAL)
    assert chat.figures(pane) == "40 tok/s  5 tok  ITL 25ms  in 12"
    assert chat.figures(pane, 18) == "40 tok/s  5 tok"


def test_unknown_figures_are_dashes() -> None:
    assert chat.figures(Pane()) == "– tok/s  – tok  ITL –"
    assert (
        chat.figures(Pane().asked("x", 1.0).grown("a", 1, 0.1, 2.0).done("length", None, 1))
        == "– tok/s  1 tok  ITL –  cut at max"
    )


def test_stopping_and_failing() -> None:
    pane = Pane().asked("x", 1.0).grown("a", 1, 0.1, 2.0)
    assert pane.stopped().progress is Progress.STOPPED
    assert chat.pane_note(pane.failed("the engine died"), 3.0) == ("failed", Severity.CRIT)
    assert pane.done("stop", 1, 1).stopped().progress is Progress.DONE


def test_the_verdict_compares() -> None:
    def answer(text: str, ttft: float) -> Pane:
        return Pane().asked("x", 0.0).grown(text, 1, ttft, 1.0)

    same = chat.verdict(["r1", "r2"], [answer("abcd", 0.2), answer("abc", 0.22)])
    assert joined(same) == "verdict  r1 = r2 for 3 characters · Δ TTFT 20ms"
    other = chat.verdict(["r1", "r2", "r3"], [answer("abcd", 0.2), answer("abxd", 0.2), answer("abcd", 0.9)])
    assert (
        joined(other)
        == "verdict  r1 = r3 for 4 characters · r2 parts from r1 at character 2 · TTFT of r3 4.5× that of r1"
    )
    assert chat.verdict(["r1"], [answer("a", 0.1)]) == ()


@given(st.lists(st.tuples(st.text(max_size=5), st.floats(0, 5)), max_size=30))
def test_pieces_join_to_the_text_and_slices_to_their_number(pieces: list[tuple[str, float]]) -> None:
    pane, now = Pane().asked("x", 0.0), 0.0
    for text, wait in pieces:
        now += wait
        pane = pane.grown(text, 1, 0.1, now)
    assert pane.text == "".join(text for text, _ in pieces)
    assert sum(pane.slices) == pane.pieces == len(pieces)


# -------------------------------------------------------------------------------------------------------------- logs


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 3)), max_size=60), st.randoms(use_true_random=False))
def test_merging_loses_nothing_and_orders_what_is_held_together(
    lines: list[tuple[float, int]], rng: random.Random
) -> None:
    merger = logs.Merger(hold_seconds=1.0)
    out: list[LogEntry] = []
    now = 0.0
    for at, source in lines:
        merger.add([make_entry(at, f"s{source}", "x")], now)
        now += rng.random()
        taken = merger.take(now)
        assert [entry.at for entry in taken] == sorted(entry.at for entry in taken)
        out += taken
    out += merger.take(now + 2.0)
    assert len(merger) == 0
    assert sorted(entry.at for entry in out) == sorted(at for at, _ in lines)


def test_rates_and_lines_about_them() -> None:
    rates = logs.Rates()
    assert rates.per_second is None
    rates.count([make_entry(0, "a", "ERROR x"), make_entry(0, "a", "INFO y")])
    rates.tick()
    assert list(rates.total) == [2]
    assert list(rates.errors) == [1]
    line = joined(logs.source_line(("demo-r1", "demo-r2"), ("demo-r2",), rates))
    assert line == " 2 sources: demo/r1, demo/r2 ▏merged by time ▏2 lines/s ▏● not connected: demo/r2"
    status = logs.status_line(
        search="oom",
        hits=214,
        hit=3,
        scanning=False,
        filter=LogFilter(exclude=("GET /health",)),
        kept=61_000,
        capacity=100_000,
        lost=0,
        following=True,
    )
    assert joined(status) == " /oom ▏hit 3 of 214 ▏- GET /health ▏ring 61k/100k ▏0 lost ▏● FOLLOW"


# -------------------------------------------------------------------------------------------------------------- link


def test_the_face_of_the_link(fleet: FleetState) -> None:
    assert chrome.link_face(fleet, 100.4, "u").word == "LIVE"
    assert fleet.cluster is not None
    known = fleet.cluster
    for doubt, words in ((StoreDoubt.EMPTIED, "CAME BACK EMPTY"), (StoreDoubt.STALE, "OLDER THAN IT WAS")):
        fleet.cluster = known.model_copy(update={"store_doubt": doubt})
        told = chrome.link_face(fleet, 100.4, "u")
        assert (told.word, told.severity) == ("IN DOUBT", Severity.CRIT)
        assert words in (told.banner or "")
        assert "nebula adopt --store" in (told.banner or "")
    fleet.cluster = known
    assert chrome.link_face(fleet, 110.0, "u").word == "QUIET"
    fleet.lost("refused", 2.0, 111.0)
    face = chrome.link_face(fleet, 112.0, "u")
    assert face.severity is Severity.CRIT
    assert face.banner == "NOT CONNECTED · figures are 12s old · actions locked · again in 1.0s · refused"
    fresh = FleetState()
    fresh.lost("refused", 0.0, 1.0)
    assert "nothing received yet" in (chrome.link_face(fresh, 1.0, "u").banner or "")


@pytest.mark.parametrize(
    ("role", "may"),
    [("viewer", False), ("client", False), ("operator", True), ("admin", True), (None, False), ("king", False)],
)
def test_who_may_act(role: str | None, may: bool) -> None:
    assert chrome.may_act(role) is may
