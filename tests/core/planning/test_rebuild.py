"""What an emptied or stale store is given back: nothing that does not run, nothing that would touch what does."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nebula_core.planning.rebuild import KEPT, MEMORY, NODES, STORE, Witnesses, rebuilt
from nebula_core.planning.reconcile import reconcile
from nebula_core.records.access import ApiKey, Role
from nebula_core.records.base import frozen_map
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.snapshot import ClusterSnapshot
from nebula_core.records.store_memory import StoreDoubt
from tests.support.cluster_model import ClusterModel, make_deployment, make_node

EMPTY = frozen_map()


def running(replicas: int = 3, nodes: int = 2) -> ClusterModel:
    model = ClusterModel([make_node(f"n{number}", 4) for number in range(1, nodes + 1)])
    model.deploy(make_deployment(replicas=replicas))
    model.settle()
    return model


def held(model: ClusterModel) -> dict[str, list[Placement]]:
    """What each node would show."""
    shown: dict[str, list[Placement]] = {name: [] for name in model.nodes}
    for placement in model.view.placements.values():
        shown[placement.node].append(placement)
    return shown


def emptied(model: ClusterModel) -> ClusterSnapshot:
    """As a process sees it that remembers nothing."""
    return replace(
        model.view, incarnation="new", revision=0, deployments=EMPTY, placements=EMPTY, keys=EMPTY, intents=EMPTY
    )


def key(name: str, **more: object) -> ApiKey:
    return ApiKey(id=name, name=name, role=Role.CLIENT, secret_sha256="0", created_at=0, created_by="t", **more)


def follows(model: ClusterModel, found) -> tuple:
    """What the planner does once this is written."""
    after = replace(
        model.view, deployments=found.deployments, placements=found.placements, nodes=found.nodes, intents=found.intents
    )
    return reconcile(after, replace(model.policy, doubt=None), model.now).changes


@given(replicas=st.integers(0, 6), nodes=st.integers(1, 3), remembers=st.booleans(), kept=st.booleans())
def test_what_is_written_back_touches_nothing_that_runs(replicas, nodes, remembers, kept):
    model = running(replicas, nodes)
    before = model.view
    view = replace(before, incarnation="new") if remembers else emptied(model)
    seen = Witnesses(StoreDoubt.EMPTIED, view, remembers, held(model), before if kept else None)
    found = rebuilt(seen, model.now)
    assert found.placements == before.placements
    assert follows(model, found) == ()
    assert found.silent == ()
    assert all(one.order <= (found.highest_epoch, found.highest_revision) for one in before.placements.values())


def test_the_nodes_alone_make_a_deployment_for_what_runs():
    model = running(3)
    model.change("chat", replicas=2)
    model.settle()
    found = rebuilt(Witnesses(StoreDoubt.EMPTIED, emptied(model), False, held(model)), model.now)
    assert found.base == NODES
    assert found.deployments["chat"].spec.replicas == 2, "the specs say 3: how many were wanted last leaves no trace"
    assert ("deployment/chat", "2 run; generation 1 asked for 3") in found.notes


def test_what_a_node_that_answers_does_not_hold_is_not_started():
    model = running(2)
    older = model.view
    model.change("chat", replicas=1)
    model.settle()
    (gone,) = older.placements.keys() - model.view.placements.keys()
    view = replace(model.view, revision=older.revision, placements=older.placements, deployments=older.deployments)
    found = rebuilt(Witnesses(StoreDoubt.STALE, view, False, held(model)), model.now)
    assert found.base == STORE
    assert set(found.placements) == set(model.view.placements)
    assert [about for about, words in found.notes if "does not hold it" in words] == [f"replica/{gone}"]


def test_a_silent_node_keeps_what_was_remembered_of_it_and_is_named():
    model = running(2)
    before = model.view.placements
    model.nodes["n1"].up = False
    for _ in range(15):
        model.now += 1
        model.hear()
    shown = held(model)
    del shown["n1"]
    found = rebuilt(Witnesses(StoreDoubt.EMPTIED, replace(model.view, incarnation="new"), True, shown), model.now)
    assert found.base == MEMORY
    assert found.silent == ("n1",)
    assert found.placements == before
    assert "n1" in found.nodes, "a node that is not known is taken for removed"


def test_the_later_order_counts_and_two_holders_are_named():
    model = running(1)
    (placement,) = model.view.placements.values()
    other = "n2" if placement.node == "n1" else "n1"
    twin = placement.model_copy(update={"node": other, "epoch": placement.epoch + 1})
    model.view = replace(model.view, placements=frozen_map({twin.replica: twin}))
    model.obey()
    model.hear()
    shown = {placement.node: [placement], other: [twin]}
    found = rebuilt(Witnesses(StoreDoubt.EMPTIED, emptied(model), False, shown), model.now)
    assert found.placements[placement.replica].node == other
    assert any("look at the other" in words for _, words in found.notes)


def test_what_was_on_its_way_out_goes_on_leaving():
    model = running(2)
    placement = next(iter(model.view.placements.values()))
    leaving = placement.model_copy(update={"wanted": Wanted.DRAIN, "revision": placement.revision + 5})
    view = replace(
        model.view, incarnation="new", placements=frozen_map({**model.view.placements, leaving.replica: leaving})
    )
    found = rebuilt(Witnesses(StoreDoubt.EMPTIED, view, True, held(model)), model.now)
    assert found.placements[leaving.replica].wanted is Wanted.DRAIN


def forgeries(placement: Placement) -> list[Placement]:
    """Orders that nobody of us has signed, each later than the true one."""
    later = placement.model_copy(update={"epoch": placement.epoch + 1})
    spec = placement.spec.model_copy(update={"image": "evil:1"})
    return [
        later.model_copy(update={"spec": spec}),
        later.model_copy(update={"spec": spec, "wanted": Wanted.DRAIN}),
        later.model_copy(update={"deployment": "other"}),
        later.model_copy(update={"spec": spec, "deployment": "other"}),
    ]


@given(number=st.integers(0, 3), remembers=st.booleans(), silent=st.booleans(), shown=st.booleans())
def test_what_no_signature_vouches_for_is_not_signed(number, remembers, silent, shown):
    """Put into the store before the loss or after it, remembered by this process or on disk; the node silent or not."""
    model = running(2)
    before = dict(model.view.placements)
    replica, true = next(iter(before.items()))
    forged = forgeries(true)[number]
    shows = held(model) if shown else {}
    if silent:
        model.nodes[true.node].up = False
        for _ in range(15):
            model.now += 1
            model.hear()
        shows.pop(true.node, None)
    remembered = replace(model.view, placements=frozen_map({**before, replica: forged}))
    view = replace(remembered, incarnation="new") if remembers else replace(emptied(model), reports=model.view.reports)
    found = rebuilt(Witnesses(StoreDoubt.EMPTIED, view, remembers, shows, remembered), model.now)
    assert found.placements.get(replica) == (true if shown and not silent else None)
    assert any(about == f"replica/{replica}" and "look who writes" in words for about, words in found.notes)
    rest = {name: one for name, one in before.items() if name != replica and not (silent and one.node == true.node)}
    assert rest.items() <= found.placements.items()


def test_a_number_that_no_cluster_reaches_is_not_risen_above():
    """One node that says it has obeyed epoch 2^60 would leave the store's scripts no number above it."""
    model = running(2)
    (node, received), *_ = model.view.reports.items()
    replicas = tuple(
        one.model_copy(update={"placement_epoch": 1 << 60, "placement_revision": 1 << 60})
        for one in received.report.replicas
    )
    report = received.report.model_copy(update={"replicas": replicas})
    view = replace(model.view, reports=frozen_map({**model.view.reports, node: replace(received, report=report)}))
    found = rebuilt(Witnesses(StoreDoubt.EMPTIED, replace(view, incarnation="new"), True, held(model)), model.now)
    assert found.highest_epoch == max(one.epoch for one in model.view.placements.values())
    assert found.highest_revision == view.revision


def test_keys_that_were_deleted_do_not_return_with_an_older_copy():
    model = running(1)
    kept = replace(model.view, keys=frozen_map({"a": key("a")}))
    stale = replace(model.view, revision=1, keys=frozen_map({"a": key("a"), "deleted": key("deleted")}))
    found = rebuilt(Witnesses(StoreDoubt.STALE, stale, False, held(model), kept), model.now)
    assert found.base == KEPT
    assert set(found.keys) == {"a"}


def test_keys_of_an_emptied_store_are_those_of_the_disk_and_those_made_since():
    model = running(1)
    kept = replace(model.view, keys=frozen_map({"a": key("a"), "b": key("b", generation=2, revoked=True)}))
    view = replace(emptied(model), keys=frozen_map({"b": key("b"), "init": key("init")}))
    found = rebuilt(Witnesses(StoreDoubt.EMPTIED, view, False, held(model), kept), model.now)
    assert set(found.keys) == {"a", "b", "init"}
    assert found.keys["b"].revoked
