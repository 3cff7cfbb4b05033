"""The laws of planning on random clusters with random faults (reliability 4.1): no plan may break one, ever."""

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nebula_core.planning.autoscale import wanted_replicas
from nebula_core.planning.drain import live_proxies
from nebula_core.planning.index import ClusterIndex, build_index, judged_state
from nebula_core.planning.memory import observe
from nebula_core.planning.place import Placed, Request, place
from nebula_core.planning.reconcile import reconcile
from nebula_core.planning.rooms import build_rooms
from nebula_core.records.base import frozen_map
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import PlacementChange, Plan
from nebula_core.records.replica import Phase
from nebula_core.records.snapshot import NodeState
from tests.support.cluster_model import GIB, ClusterModel, make_deployment, make_node

MODELS = ("chat", "code", "embed")
NODES = ("n1", "n2", "n3", "n4", "n5")
model_names = st.sampled_from(MODELS)
node_names = st.sampled_from(NODES)


class Cluster(RuleBasedStateMachine):
    """Operators, machines and requests do as they like; after every second the leader plans and obeys."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ClusterModel(proxies=2)
        self.index = ClusterIndex()
        #: What the plan just judged places.
        self._given: list[Placement] = []

    @initialize(
        sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5),
        labels=st.lists(st.booleans(), min_size=5, max_size=5),
        replicas=st.lists(st.integers(1, 3), max_size=3),
    )
    def build(self, sizes: list[int], labels: list[bool], replicas: list[int]) -> None:
        for name, gpus, labelled in zip(NODES, sizes, labels, strict=False):
            self.model.add_node(make_node(name, gpus, labels={"pool": "a"} if labelled else {}))
        self.model.hear()
        for name, count in zip(MODELS, replicas, strict=False):
            self.model.deploy(make_deployment(name, count, drain_grace_seconds=20.0))
        self.time_passes(8)

    # -- operators -------------------------------------------------------------------------------------------------

    @rule(name=model_names, replicas=st.integers(0, 6), gpus=st.integers(0, 3), pool=st.booleans(), keep=st.booleans())
    def deploy(self, name: str, replicas: int, gpus: int, pool: bool, keep: bool) -> None:
        if name in self.model.view.deployments:
            self.model.change(name, replicas=replicas)
            return
        self.model.deploy(
            make_deployment(
                name,
                replicas,
                gpus=gpus,
                placement={"labels": {"pool": "a"} if pool else {}},
                on_node_lost="keep" if keep else "replace",
                drain_grace_seconds=20.0,
            )
        )

    @rule(name=model_names, seed=st.integers(0, 3), gpus=st.integers(1, 6))
    def new_spec(self, name: str, seed: int, gpus: int) -> None:
        if name in self.model.view.deployments:
            self.model.change(name, args={"seed": seed}, gpus=gpus)

    @rule(name=model_names)
    def restart(self, name: str) -> None:
        if name in self.model.view.deployments:
            self.model.change(name, restart=True)

    @rule(name=model_names)
    def delete(self, name: str) -> None:
        if name in self.model.view.deployments:
            self.model.delete(name)

    @rule(name=node_names, what=st.sampled_from(["cordon", "drain", "open"]))
    def intend(self, name: str, what: str) -> None:
        if name in self.model.nodes:
            self.model.intend(name, cordoned=what == "cordon", drain=what == "drain")

    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        view = self.model.view
        running = [one for one in view.placements.values() if one.wanted is Wanted.RUN]
        known = sorted(one.replica for one in running if one.deployment in view.deployments)
        if known:
            self.model.move(data.draw(st.sampled_from(known)), "asked for by ops")

    # -- what goes wrong -------------------------------------------------------------------------------------------

    @rule(name=node_names, back=node_names)
    def power_fails(self, name: str, back: str) -> None:
        """Mostly one at a time: the brake would end every other game."""
        for node in (name, back):
            if node in self.model.nodes:
                self.model.nodes[node].up = node == back

    @rule()
    def power_returns(self) -> None:
        for node in self.model.nodes.values():
            node.up = True

    @rule(name=node_names, stuck=st.booleans(), unscraped=st.booleans())
    def agent_trouble(self, name: str, stuck: bool, unscraped: bool) -> None:
        if name in self.model.nodes:
            self.model.nodes[name].stuck = stuck
            self.model.nodes[name].unscraped = unscraped

    @rule(name=node_names, index=st.integers(0, 4), what=st.sampled_from(["fault", "foreign", "heal"]))
    def gpu(self, name: str, index: int, what: str) -> None:
        node = self.model.nodes.get(name)
        if node is None or index >= len(node.node.gpus):
            return
        gpu = node.node.gpus[index].id
        node.faults.pop(gpu, None)
        node.foreign.pop(gpu, None)
        if what == "fault":
            node.faults[gpu] = "Xid 79"
        elif what == "foreign":
            node.foreign[gpu] = 30 * GIB

    @rule(data=st.data(), broken=st.booleans())
    def engine_fails(self, data: st.DataObject, broken: bool) -> None:
        running = [(node, replica) for node in self.model.nodes.values() if node.up for replica in sorted(node.running)]
        if running:
            node, replica = data.draw(st.sampled_from(running), label="engine")
            if broken:
                node.broken.add(replica)
            elif node.running[replica].phase is not Phase.STOPPED:
                node.running[replica].phase = Phase.FAILED

    @rule(data=st.data(), count=st.integers(0, 3), proxy=st.sampled_from(["proxy-0", "proxy-1"]))
    def requests(self, data: st.DataObject, count: int, proxy: str) -> None:
        serving = [replica for name in MODELS for replica in self.model.ready(name)]
        if serving:
            self.model.proxies[proxy].inflight[data.draw(st.sampled_from(serving))] = count

    @rule(proxy=st.sampled_from(["proxy-0", "proxy-1"]), lagging=st.booleans())
    def proxy_lags(self, proxy: str, lagging: bool) -> None:
        self.model.proxies[proxy].lagging = lagging

    @rule(replica=st.sampled_from(["chat-r1", "code-r1", "chat-r2"]))
    def placement_vanishes(self, replica: str) -> None:
        """A store that lost a write: absence is no order."""
        placement = self.model.view.placements.get(replica)
        if placement is not None and placement.wanted is Wanted.RUN:
            self.model._put("placements", replica, None)

    # -- time ------------------------------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.one_second()

    def one_second(self) -> Plan:
        model = self.model
        model.now += 1.0
        model.obey()
        model.hear()
        before = model.policy
        model.policy = observe(before, model.view, model.now)
        plan = reconcile(model.view, model.policy, model.now)
        kept = observe(before, model.view, model.now, self.index)
        assert kept == model.policy, "a kept index must not change what is remembered"
        assert plan == reconcile(model.view, kept, model.now, self.index), "nor what is planned"
        assert plan == reconcile(*self._shuffled()), "the same cluster must give the same plan"
        self._given = [
            change.placement
            for change in plan.changes
            if change.placement is not None and change.replica not in model.view.placements
        ]
        for change in plan.changes:
            self._check(change)
        self._check_counts(plan)
        self._check_unplaceable(plan)
        model.apply(plan)
        return plan

    def _shuffled(self):
        """The same view with every map turned round."""
        view = self.model.view

        def turned(items):
            return frozen_map(dict(reversed(items.items())))

        return (
            replace(
                view,
                deployments=turned(view.deployments),
                nodes=turned(view.nodes),
                placements=turned(view.placements),
                reports=turned(view.reports),
                proxies=turned(view.proxies),
            ),
            self.model.policy,
            self.model.now,
        )

    # -- the laws of one change ------------------------------------------------------------------------------------

    def _check(self, change: PlacementChange) -> None:
        before = self.model.view.placements.get(change.replica)
        after = change.placement
        assert change.reason
        if after is None:
            self._check_removal(change, before)
        elif before is None and not self._reported(change.replica):
            assert after.wanted is Wanted.RUN
            self._check_start(after)
        elif before is not None:
            assert (before.node, before.gpus, before.spec) == (after.node, after.gpus, after.spec)
            assert after.order >= before.order
            if before.wanted is Wanted.RUN and after.wanted is not Wanted.RUN:
                self._check_retirement(before, after)
            elif before.wanted is Wanted.DRAIN and after.wanted is Wanted.STOP:
                self._check_stop(before)
            else:
                assert (before.wanted, after.wanted) == (Wanted.DRAIN, Wanted.RUN)

    def _reported(self, replica: str) -> bool:
        return replica in self.model.view.replicas()

    def _check_removal(self, change: PlacementChange, before: Placement | None) -> None:
        assert before is not None
        status = self.model.view.replicas().get(change.replica)
        assert before.wanted is Wanted.STOP
        assert status is None or status.phase is Phase.STOPPED

    def _check_start(self, placement: Placement) -> None:
        node = self.model.view.nodes[placement.node]
        intent = self.model.view.intents.get(placement.node)
        assert judged_state(self.model.view, self.model.policy, placement.node, self.model.now) is NodeState.READY
        assert intent is None or not intent.closed
        assert len(placement.gpus) == placement.spec.gpus
        assert set(placement.gpus) <= {gpu.id for gpu in node.gpus}
        model_node = self.model.nodes[placement.node]
        assert not set(placement.gpus) & (set(model_node.faults) | set(model_node.foreign))
        for label, value in placement.spec.placement.labels.items():
            assert node.labels[label] == value

    def _check_retirement(self, before: Placement, after: Placement) -> None:
        view = self.model.view
        status = view.replicas().get(before.replica)
        if after.wanted is Wanted.STOP:
            assert status is None or status.load_seconds is None, "stopped without a drain though it had served"
            assert view.inflight(before.replica) == 0
        deployment = view.deployments.get(before.deployment)
        if deployment is None or wanted_replicas(deployment.spec) == 0 or before.replica not in self._serving(before):
            return
        if len(self._serving(before)) == 1:
            # The last one that serves may go only where its replacement fits nowhere while it stands.
            index = build_index(view, self.model.policy, self.model.now)
            rooms = build_rooms(index)
            for taken in self._given:
                rooms[taken.node] = rooms[taken.node].taken(taken.gpus, taken.replica)
            found = place(Request(before.deployment, deployment.spec), rooms)
            assert not isinstance(found, Placed), f"the last ready replica goes though {found} is free"

    def _serving(self, placement: Placement) -> list[str]:
        view = self.model.view
        return [
            status.id
            for status in view.replicas().values()
            if status.deployment == placement.deployment
            and status.phase is Phase.READY
            and view.node_state(status.node, self.model.now) is NodeState.READY
            # Without a placement it serves on (absence is no order) and is adopted.
            and ((one := view.placements.get(status.id)) is None or one.wanted is Wanted.RUN)
        ]

    def _check_stop(self, before: Placement) -> None:
        view, now = self.model.view, self.model.now
        seen = self.model.policy.memory.drains[before.replica]
        intent = view.intents.get(before.node)
        deployment = view.deployments.get(before.deployment)
        spec = before.spec if deployment is None else deployment.spec
        grace = intent.drain.grace_seconds if intent and intent.drain else spec.drain_grace_seconds
        if now - seen.since >= grace:
            return
        status = view.replicas().get(before.replica)
        if status is not None and status.phase in {Phase.FAILED, Phase.STOPPED}:
            return
        assert view.inflight(before.replica) == 0
        for proxy in live_proxies(view, now):
            assert self.model.proxies[proxy].revision >= seen.revision
            assert self.model.proxies[proxy].inflight.get(before.replica, 0) == 0

    # -- the laws of a plan ----------------------------------------------------------------------------------------

    def _check_counts(self, plan: Plan) -> None:
        started: dict[str, int] = {}
        for change in plan.changes:
            if change.placement is not None and change.placement.wanted is Wanted.RUN:
                known = self.model.view.placements.get(change.replica)
                if known is None and not self._reported(change.replica):
                    started[change.placement.deployment] = started.get(change.placement.deployment, 0) + 1
        view = self.model.view
        for name, count in started.items():
            spec = view.deployments[name].spec
            going = {one.replica for one in plan.changes if one.placement and one.placement.wanted is not Wanted.RUN}
            present = sum(
                1
                for one in view.placements.values()
                if one.deployment == name
                and one.replica not in going
                and one.wanted is Wanted.RUN
                and view.node_state(one.node, self.model.now) is not NodeState.LOST
            )
            assert present + count <= wanted_replicas(spec) + self.model.policy.surge

    def _check_unplaceable(self, plan: Plan) -> None:
        for blocked in plan.unplaceable:
            assert blocked.count > 0
            assert blocked.reason
            assert len(blocked.verdicts) == min(20, len(self.model.view.nodes))
            assert all(verdict.reason and not verdict.fits for verdict in blocked.verdicts)

    # -- the laws of the cluster -----------------------------------------------------------------------------------

    @invariant()
    def no_gpu_belongs_to_two(self) -> None:
        taken: dict[str, str] = {}
        for one in self.model.view.placements.values():
            for gpu in one.gpus:
                assert gpu not in taken, f"{gpu} belongs to {taken[gpu]} and {one.replica}"
                taken[gpu] = one.replica

    def teardown(self) -> None:
        """When the faults end, the cluster comes to rest, and then nothing changes any more (I11)."""
        model = self.model
        if not model.nodes:
            return
        for node in model.nodes.values():
            node.up, node.stuck, node.unscraped = True, False, False
        for proxy in model.proxies.values():
            proxy.lagging = False
            proxy.inflight.clear()
        calm = 0
        for _ in range(600):
            calm = 0 if self.one_second().changes else calm + 1
            if calm == 30:
                break
        assert calm == 30, f"does not come to rest: {model.plan().summary}"
        plan = model.plan()
        blocked = {one.deployment for one in plan.unplaceable}
        for name in MODELS:
            deployment = model.view.deployments.get(name)
            wanted = 0 if deployment is None else wanted_replicas(deployment.spec)
            running = model.placed(name)
            assert len(running) <= wanted + model.policy.surge
            if name not in blocked:
                assert len(running) >= wanted, plan.entries
            if deployment is None:
                assert not running


Cluster.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLaws = Cluster.TestCase
