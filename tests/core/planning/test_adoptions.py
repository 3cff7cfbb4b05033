"""Engines started by hand that an operator wants: taken in while they run, and never another one under their id."""

import pytest

from nebula_core.planning.memory import observe
from nebula_core.planning.reconcile import reconcile
from nebula_core.records.adoption import Adoption, AdoptTarget
from nebula_core.records.found import FoundEngine
from tests.support.cluster_model import ClusterModel, make_deployment, make_node
from tests.support.records import a_status

TARGET = AdoptTarget(found="vllm-8000-ab12cd", pid=70, pid_born=10.5, host="127.0.0.1", port=8000, served_model="tiny")


def plan(**changes):
    """What is planned when this is what runs under that id."""
    model = ClusterModel([make_node("n1", 1)])
    deployment = make_deployment("chat", replicas=1, gpus=0)
    order = Adoption(node="n1", target=TARGET, generation=1)
    model.deploy(deployment.model_copy(update={"adoptions": (order,)}))
    values = {"deployment": TARGET.found, "managed": False, "pid": 70, "found": FoundEngine(pid_born=10.5)} | changes
    [report] = model.node_reports()
    report = report.model_copy(update={"replicas": (a_status(TARGET.found, "n1", **values),)})
    view = model.view.with_reports([report], model.proxy_reports(), at=model.now)
    return reconcile(view, observe(model.policy, view, model.now), model.now)


def test_an_engine_that_is_wanted_becomes_the_missing_replica():
    [change] = plan().changes
    assert change.reason == "takes in vllm-8000-ab12cd (pid 70 on n1) as chat-r1; nothing is restarted"
    assert change.placement.adopt == TARGET


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 71},
        {"found": FoundEngine(pid_born=99.0)},
        {"found": FoundEngine()},
        {"found": None},
        {"managed": True},
    ],
)
def test_what_runs_under_its_id_by_now_is_left_alone(changes):
    """A container has one id for all of its starts: the order was about the one that an operator saw."""
    assert [change.placement.adopt for change in plan(**changes).changes if change.placement is not None] in (
        [],
        [None],
    )
