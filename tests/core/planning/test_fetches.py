"""What a plan makes nodes bring to their disks: what is known to be missing, what is not known, and never a size that is made up."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nebula_core.planning.fetches import planned_fetches
from nebula_core.planning.preview import preview
from nebula_core.records.base import frozen_map
from nebula_core.records.model_source import read_source
from nebula_core.records.plan import PlannedFetch
from nebula_core.records.report import CachedModel, ImagePull, ModelCacheFacts, ModelFetch, NodeImage
from tests.support.cluster_model import ClusterModel, make_deployment, make_node

GIB = 1024**3
QWEN = "Qwen/Qwen2.5-7B-Instruct"
IMAGE = "vllm/vllm-openai:v0.10.0"
DIGEST = "sha256:" + "a" * 64


def entry(source=QWEN, engine="vllm"):
    return read_source(source, engine=engine).id


def kept(source=QWEN, size=15 * GIB, *, complete=True, engine="vllm"):
    return CachedModel(id=entry(source, engine), source=source, size_bytes=size, complete=complete)


def cluster_of(nodes=2, *, runtimes=("process",), engines=("vllm", "llamacpp"), **reports):
    """`n1={"models": …}` is what the report of n1 says beside what it says anyway."""
    made = [make_node(f"n{number}", 2, runtimes=runtimes, engines=engines) for number in range(1, nodes + 1)]
    cluster = ClusterModel(made)
    cluster.settle()
    tell(cluster, **{f"n{number}": {"models": ()} for number in range(1, nodes + 1)})
    tell(cluster, **reports)
    return cluster


def tell(cluster, **reports):
    view = cluster.view
    told = {
        name: replace(view.reports[name], report=view.reports[name].report.model_copy(update=said))
        for name, said in reports.items()
    }
    cluster.view = replace(view, reports=frozen_map({**view.reports, **told}))


def fetches(cluster, deployment) -> tuple[PlannedFetch, ...]:
    plan = preview(cluster.view, cluster.policy, cluster.now, deployments={deployment.name: deployment})
    return planned_fetches(cluster.view, plan)


def asked(replicas=1, **spec):
    return make_deployment("chat", replicas, **{"source": QWEN, "engine": "vllm", **spec})


def test_a_node_that_lacks_the_model_fetches_it_and_another_says_how_large_it_is():
    cluster = cluster_of(n1={"models": (kept(),)})
    [one] = fetches(cluster, asked(2))
    assert (one.node, one.kind, one.name, one.origin) == ("n2", "model", QWEN, "hub")
    assert (one.size_bytes, one.here_bytes, one.certain, one.under_way) == (15 * GIB, 0, True, False)
    assert one.replicas == ("chat-r2",)
    assert one.words == f"n2 fetches {QWEN} from the hub (15.0 GiB)"


def test_a_size_nobody_knows_is_unknown():
    [one] = fetches(cluster_of(1), asked())
    assert one.size_bytes is None
    assert one.words == f"n1 fetches {QWEN} from the hub (size unknown)"


def test_two_replicas_on_a_node_fetch_once():
    [one] = fetches(cluster_of(1), asked(2))
    assert one.replicas == ("chat-r1", "chat-r2")


def test_what_was_broken_off_and_what_is_on_its_way_is_counted():
    part = kept(size=3 * GIB, complete=False)
    cluster = cluster_of(1, n1={"models": (part,)})
    [one] = fetches(cluster, asked())
    assert (one.here_bytes, one.size_bytes) == (3 * GIB, None)
    assert one.words.endswith("(size unknown, 3.0 GiB of it there)")
    coming = ModelFetch(source=QWEN, id=entry(), done_bytes=4 * GIB, total_bytes=15 * GIB)
    tell(cluster, n1={"models": (part,), "fetches": (coming,)})
    [one] = fetches(cluster, asked())
    assert (one.here_bytes, one.size_bytes, one.under_way) == (4 * GIB, 15 * GIB, True)
    assert one.words == f"n1 is fetching {QWEN} from the hub (15.0 GiB, 4.0 GiB of it there)"
    tell(cluster, n1={"models": (part,), "fetches": (coming.model_copy(update={"failed": True}),)})
    assert not fetches(cluster, asked())[0].under_way


def test_the_same_repository_is_another_model_for_an_engine_with_other_weights():
    cluster = cluster_of(1, n1={"models": (kept(),)})
    assert fetches(cluster, asked()) == ()
    [one] = fetches(cluster, asked(engine="llamacpp"))
    assert (one.name, one.size_bytes) == (QWEN, None)


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("modelscope:Qwen/Q", "modelscope"),
        ("s3://models/qwen", "s3"),
        ("nfs+copy:/mnt/qwen", "copy"),
        ("/models/qwen", None),
        ("nfs:/mnt/qwen", None),
    ],
)
def test_where_from(source, origin):
    found = fetches(cluster_of(1), asked(source=source))
    assert [one.origin for one in found] == ([] if origin is None else [origin])


def test_adapters_come_too():
    adapters = [{"name": "sql", "source": "s3:models/sql"}]
    cluster = cluster_of(1, n1={"models": (kept(),)})
    assert [one.name for one in fetches(cluster, asked(adapters=adapters))] == ["s3:models/sql"]


@pytest.mark.parametrize(
    "said",
    [
        {"models": None},
        {"models": (), "model_cache": ModelCacheFacts(used_bytes=0, evictable_bytes=0, room_bytes=0, models=7)},
    ],
)
def test_a_node_that_does_not_name_all_it_has_may_have_it(said):
    [one] = fetches(cluster_of(1, n1=said), asked())
    assert (one.certain, one.here_bytes) == (False, None)
    assert one.words == f"n1 fetches {QWEN} from the hub unless it has it (size unknown)"


def test_what_runs_already_and_what_stops_fetches_nothing():
    cluster = cluster_of(1)
    cluster.deploy(asked())
    cluster.settle()
    tell(cluster, n1={"models": ()})
    assert fetches(cluster, asked()) == ()
    assert fetches(cluster, asked(0)) == ()
    [one] = fetches(cluster, asked(2))
    assert one.replicas == ("chat-r2",)


def test_simulated_and_external_engines_bring_nothing():
    cluster = cluster_of(1, engines=("simulated",))
    assert fetches(cluster, make_deployment("chat", 1)) == ()
    outside = make_deployment("chat", 1, engine="external", source="http://10.0.0.7:8000", gpus=0)
    assert fetches(cluster, outside) == ()


def image(tag=IMAGE, size=20 * GIB, digests=()):
    return NodeImage(id="sha256:" + "b" * 64, tags=(tag,) if tag else (), digests=digests, size_bytes=size)


def docker(nodes=1, *, engines=(), **reports):
    cluster = cluster_of(nodes, runtimes=("process", "docker"), engines=engines)
    tell(cluster, **{f"n{number}": {"models": (kept(),), "images": ()} for number in range(1, nodes + 1)})
    tell(cluster, **reports)
    return cluster


def test_an_image_that_is_not_there_is_pulled():
    cluster = docker(2, n1={"images": (image(),)})
    [one] = fetches(cluster, asked(2, image=f"docker.io/{IMAGE}"))
    assert (one.node, one.kind, one.name, one.origin, one.size_bytes) == ("n2", "image", IMAGE, "docker.io", 20 * GIB)
    assert one.words == f"n2 pulls {IMAGE} from docker.io (20.0 GiB)"
    tell(cluster, n2={"pulls": (ImagePull(image=IMAGE, progress=0.1),)})
    assert fetches(cluster, asked(2, image=IMAGE))[0].words.startswith("n2 is pulling ")


def test_an_image_is_known_by_its_digest_where_one_is_said():
    pinned = f"vllm/vllm-openai@{DIGEST}"
    assert fetches(docker(n1={"images": (image(None, digests=(pinned,)),)}), asked(image=pinned)) == ()
    [one] = fetches(docker(n1={"images": (image(),)}), asked(image=pinned))
    assert (one.name, one.size_bytes) == (f"vllm/vllm-openai@{DIGEST[:19]}", None)


def test_what_auto_means_is_learned_from_a_replica_that_runs():
    cluster = docker(2)
    [one] = fetches(cluster, asked())
    assert (one.kind, one.name, one.certain) == ("image", None, False)
    assert one.words == "n1 pulls the image of its catalog unless it has it (size unknown)"
    cluster.deploy(asked())
    cluster.settle()
    [status] = cluster.view.reports["n1"].report.replicas
    running = status.model_copy(update={"image": IMAGE, "runtime": "docker"})
    tell(cluster, n1={"models": (kept(),), "images": (image(),), "replicas": (running,)})
    tell(cluster, n2={"models": (kept(),), "images": ()})
    [one] = fetches(cluster, asked(2))
    assert (one.node, one.name, one.certain, one.size_bytes) == ("n2", IMAGE, True, 20 * GIB)


def test_no_image_where_it_is_no_container():
    assert fetches(docker(engines=("vllm",)), asked()) == ()
    assert fetches(docker(engines=("vllm",)), asked(runtime="process", image=IMAGE)) == ()
    assert [one.kind for one in fetches(docker(engines=("vllm",)), asked(image=IMAGE))] == ["image"]
    tell(unknown := docker(), n1={"images": None})
    assert not fetches(unknown, asked(image=IMAGE))[0].certain


@given(
    having=st.lists(st.sampled_from(["whole", "part", "none", "silent"]), min_size=1, max_size=4),
    replicas=st.integers(0, 6),
)
def test_whatever_is_there_nothing_is_fetched_twice_and_no_size_is_made_up(having, replicas):
    said = {
        "whole": {"models": (kept(),)},
        "part": {"models": (kept(size=GIB, complete=False),)},
        "none": {"models": ()},
        "silent": {"models": None},
    }
    nodes = {f"n{number}": said[what] for number, what in enumerate(having, 1)}
    cluster = cluster_of(len(having), **nodes)
    found = fetches(cluster, asked(replicas))
    assert len({one.node for one in found}) == len(found)
    for one in found:
        assert having[int(one.node[1:]) - 1] != "whole"
        assert one.size_bytes == (15 * GIB if "whole" in having else None)
        assert one.certain is (having[int(one.node[1:]) - 1] != "silent")
    plan = preview(cluster.view, cluster.policy, cluster.now, deployments={"chat": asked(replicas)})
    placed = {change.placement.node for change in plan.changes if change.placement is not None}
    assert {one.node for one in found} == {node for node in placed if having[int(node[1:]) - 1] != "whole"}


def test_among_equal_nodes_one_that_has_the_model_is_chosen():
    cluster = cluster_of(3, n2={"models": (kept(engine="llamacpp"),)}, n3={"models": (kept(),)})
    plan = preview(cluster.view, cluster.policy, cluster.now, deployments={"chat": asked()})
    [change] = plan.changes
    assert change.placement is not None
    assert change.placement.node == "n3"
    other = asked(placement={"prefer_cached": False})
    plan = preview(cluster.view, cluster.policy, cluster.now, deployments={"chat": other})
    assert plan.changes[0].placement.node == "n1"


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0.0 MiB"), (5 << 20, "5.0 MiB"), (GIB // 10, "0.1 GiB"), (600 * GIB, "600.0 GiB")]
)
def test_small_ones_are_told_in_smaller_units(size, said):
    assert PlannedFetch(node="n1", kind="model", name="m", size_bytes=size).words == f"n1 fetches m ({said})"
