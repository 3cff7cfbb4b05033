"""A whole cluster in memory for the laws of planning: agents and proxies that obey, machines that fail, a hand-made clock.

It is not the store: it keeps a `ClusterSnapshot` as a watcher would build it, applies plans to it as the leader does,
and lets agents walk through the phases of a replica one step per `tick`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nebula_core.planning.memory import observe
from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.reconcile import reconcile
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Deployment, DeploymentSpec, Move
from nebula_core.records.node import DrainIntent, Gpu, Node, NodeIntent
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import Plan
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.report import NodeReport, ProxyReport
from nebula_core.records.sample import EngineSample, GpuProcess, GpuSample
from nebula_core.records.snapshot import ClusterSnapshot

GIB = 1024**3
_NEXT = {
    Phase.PENDING: Phase.CREATING,
    Phase.CREATING: Phase.LOADING,
    Phase.LOADING: Phase.READY,
}


def make_node(
    name: str,
    gpus: int = 4,
    *,
    labels: Mapping[str, str] | None = None,
    memory_gib: int = 80,
    engines: tuple[str, ...] = ("simulated",),
    runtimes: tuple[str, ...] = ("process",),
    cpu_slots: int | None = 2,
) -> Node:
    return Node(
        name=name,
        boot_id=f"boot-{name}",
        version="0",
        hostname=name,
        address="127.0.0.1",
        gpus=tuple(
            Gpu(id=f"sim-{name}-{index}", index=index, name="Sim", memory_total_bytes=memory_gib * GIB, simulated=True)
            for index in range(gpus)
        ),
        labels=dict(labels or {}),
        engines=engines,
        runtimes=runtimes,
        cpu_slots=cpu_slots,
    )


def make_deployment(name: str = "chat", replicas: int = 1, *, generation: int = 1, **spec: object) -> Deployment:
    values: dict[str, object] = {"source": "sim", "engine": "simulated", "replicas": replicas, **spec}
    nonce = values.pop("restart_nonce", 0)
    return Deployment(
        name=name,
        generation=generation,
        spec=DeploymentSpec.model_validate(values),
        restart_nonce=nonce,
    )


@dataclass
class Running:
    """A replica as its agent runs it."""

    placement: Placement
    phase: Phase = Phase.PENDING
    load_seconds: float | None = None

    def obey(self) -> None:
        wanted = self.placement.wanted
        if wanted is Wanted.STOP:
            self.phase = Phase.STOPPED
        elif wanted is Wanted.DRAIN:
            if self.phase is not Phase.STOPPED:
                self.phase = Phase.DRAINING
        elif self.phase is Phase.DRAINING:
            self.phase = Phase.READY if self.load_seconds is not None else Phase.LOADING
        elif self.phase in {Phase.STOPPED, Phase.FAILED}:
            self.phase = Phase.PENDING
            self.load_seconds = None
        elif self.phase in _NEXT:
            self.phase = _NEXT[self.phase]
            if self.phase is Phase.READY:
                self.load_seconds = 3.0


@dataclass
class ModelNode:
    node: Node
    up: bool = True
    running: dict[str, Running] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    #: Memory a stranger holds on a GPU.
    foreign: dict[str, int] = field(default_factory=dict)
    #: Figures of a GPU that lag behind: a replica that stopped still stands in them.
    ghosts: dict[str, str] = field(default_factory=dict)
    #: Replicas that can not start here (their agent gave up).
    broken: set[str] = field(default_factory=set)
    #: The agent reports, but does nothing.
    stuck: bool = False
    #: Its engines are not scraped: nobody knows their figures.
    unscraped: bool = False


@dataclass
class ModelProxy:
    revision: int = 0
    up: bool = True
    lagging: bool = False
    inflight: dict[str, int] = field(default_factory=dict)


class ClusterModel:
    def __init__(self, nodes: Iterable[Node] = (), *, proxies: int = 1) -> None:
        self.now = 1000.0
        self.view = ClusterSnapshot(incarnation="model")
        self.policy = PlanPolicy(epoch=1)
        self.nodes: dict[str, ModelNode] = {}
        self.proxies = {f"proxy-{number}": ModelProxy() for number in range(proxies)}
        self._sequence = 0
        for node in nodes:
            self.add_node(node)
        self.hear()

    # -- durable records -------------------------------------------------------------------------------------------

    def _put(self, part: str, name: str, value: object) -> None:
        parts = dict(getattr(self.view, part))
        if value is None:
            parts.pop(name, None)
        else:
            parts[name] = value
        self.view = replace(self.view, revision=self.view.revision + 1, **{part: frozen_map(parts)})  # type: ignore[arg-type]

    def add_node(self, node: Node) -> None:
        self.nodes[node.name] = ModelNode(node)
        self._put("nodes", node.name, node)

    def deploy(self, deployment: Deployment) -> None:
        self._put("deployments", deployment.name, deployment)

    def change(self, name: str, *, restart: bool = False, **spec: object) -> None:
        former = self.view.deployments[name]
        values = {**former.spec.model_dump(), **spec}
        self.deploy(
            Deployment(
                name=name,
                generation=former.generation + 1,
                spec=DeploymentSpec.model_validate(values),
                restart_nonce=former.restart_nonce + restart,
                moves=former.moves,
                history=(former.spec, *former.history)[:10],
            )
        )

    def move(self, replica: str, reason: str) -> None:
        """An operator wants this replica replaced."""
        former = self.view.deployments[self.view.placements[replica].deployment]
        order = Move(replica=replica, generation=former.generation + 1, reason=reason)
        history = (former.spec, *former.history)[:10]
        update = {"generation": order.generation, "moves": (*former.moves, order), "history": history}
        self.deploy(former.model_copy(update=update))

    def delete(self, name: str) -> None:
        self._put("deployments", name, None)
        memory = replace(self.policy.memory, deleted=self.policy.memory.deleted | {name})
        self.policy = replace(self.policy, memory=memory)

    def intend(self, node: str, *, cordoned: bool = False, drain: bool = False, gpus: tuple[str, ...] = ()) -> None:
        order = DrainIntent(by="ops", since=0.0, grace_seconds=60.0) if drain else None
        self._put("intents", node, NodeIntent(node=node, cordoned=cordoned, drain=order, cordoned_gpus=gpus, by="ops"))

    def apply(self, plan: Plan) -> None:
        for change in plan.changes:
            self._put("placements", change.replica, change.placement)

    # -- what happens ----------------------------------------------------------------------------------------------

    def obey(self) -> None:
        """Every agent that is up takes one step towards its placements; every proxy that listens reads on."""
        for name, node in self.nodes.items():
            if not node.up or node.stuck:
                continue
            for placement in self.view.placements.values():
                if placement.node != name:
                    continue
                known = node.running.get(placement.replica)
                if known is None:
                    if placement.wanted is not Wanted.STOP:
                        node.running[placement.replica] = Running(placement)
                else:
                    known.placement = placement
            for replica, running in list(node.running.items()):
                if replica not in self.view.placements and running.phase is Phase.STOPPED:
                    del node.running[replica]
                    continue
                if replica in node.broken and running.placement.wanted is Wanted.RUN:
                    running.phase = Phase.FAILED
                    continue
                running.obey()
        for proxy in self.proxies.values():
            if proxy.up and not proxy.lagging:
                proxy.revision = self.view.revision
        serving = {
            replica for node in self.nodes.values() for replica, run in node.running.items() if run.phase in SERVING
        }
        for proxy in self.proxies.values():
            proxy.inflight = {
                replica: count for replica, count in proxy.inflight.items() if replica in serving and count
            }

    def hear(self) -> None:
        """Reports of everything that is up reach the leader."""
        self.view = self.view.with_reports(self.node_reports(), self.proxy_reports(), at=self.now)

    def node_reports(self) -> list[NodeReport]:
        """What every agent that is up says now."""
        self._sequence += 1
        return [self._report(node) for node in self.nodes.values() if node.up and node.node.name in self.view.nodes]

    def proxy_reports(self) -> list[ProxyReport]:
        """What every proxy that is up says now."""
        self._sequence += 1
        return [
            ProxyReport(
                proxy=name,
                sequence=self._sequence,
                pid=1,
                version="0",
                at=float(self._sequence),
                started_at=0.0,
                revision=proxy.revision,
                inflight=dict(proxy.inflight),
            )
            for name, proxy in self.proxies.items()
            if proxy.up
        ]

    def step(self, *, seconds: float = 1.0) -> Plan:
        """One second of the cluster and one pass of its leader; the plan is applied."""
        self.now += seconds
        self.obey()
        self.hear()
        plan = self.plan()
        self.apply(plan)
        return plan

    def plan(self) -> Plan:
        self.policy = observe(self.policy, self.view, self.now)
        return reconcile(self.view, self.policy, self.now)

    def settle(self, most: int = 400) -> list[Plan]:
        """Steps until fifteen passes in a row change nothing."""
        plans: list[Plan] = []
        calm = 0
        for _ in range(most):
            plans.append(self.step())
            calm = calm + 1 if not plans[-1].changes else 0
            if calm == 15:
                return plans
        raise AssertionError(f"still changing after {most} s: {plans[-1].summary}")

    def _report(self, node: ModelNode) -> NodeReport:
        replicas = tuple(
            ReplicaStatus(
                id=replica,
                deployment=running.placement.deployment,
                model=running.placement.deployment,
                node=node.node.name,
                gpus=running.placement.gpus,
                engine="simulated",
                runtime="process",
                phase=running.phase,
                generation=running.placement.generation,
                placement_epoch=running.placement.epoch,
                placement_revision=running.placement.revision,
                load_seconds=running.load_seconds,
                sample=None if node.unscraped else self._sample(replica, running),
            )
            for replica, running in sorted(node.running.items())
        )
        busy = {gpu for run in node.running.values() if run.phase is not Phase.STOPPED for gpu in run.placement.gpus}
        gpus = tuple(
            GpuSample(
                gpu=gpu.id,
                index=gpu.index,
                memory_total_bytes=gpu.memory_total_bytes,
                memory_used_bytes=(40 * GIB if gpu.id in busy or gpu.id in node.ghosts else 0)
                + node.foreign.get(gpu.id, 0),
                processes=(GpuProcess(pid=7, memory_used_bytes=40 * GIB, replica=node.ghosts[gpu.id]),)
                if gpu.id in node.ghosts
                else (),
                fault=node.faults.get(gpu.id),
            )
            for gpu in node.node.gpus
        )
        return NodeReport(
            node=node.node.name,
            boot_id=node.node.boot_id,
            sequence=self._sequence,
            agent_pid=1,
            version="0",
            at=float(self._sequence),
            gpus=gpus,
            replicas=replicas,
        )

    def _sample(self, replica: str, running: Running) -> EngineSample | None:
        if running.phase not in SERVING:
            return None
        open_requests = sum(proxy.inflight.get(replica, 0) for proxy in self.proxies.values())
        return EngineSample(requests_running=open_requests, requests_waiting=0)

    # -- what is true ----------------------------------------------------------------------------------------------

    def placed(self, deployment: str, wanted: Wanted = Wanted.RUN) -> list[Placement]:
        return sorted(
            (one for one in self.view.placements.values() if one.deployment == deployment and one.wanted is wanted),
            key=lambda one: one.replica,
        )

    def phases(self, deployment: str) -> dict[str, str]:
        return {
            replica: running.phase.value
            for node in self.nodes.values()
            for replica, running in sorted(node.running.items())
            if running.placement.deployment == deployment
        }

    def ready(self, deployment: str) -> list[str]:
        """Replicas of it that serve: ready, told to run, on a node that is up."""
        return sorted(
            replica
            for node in self.nodes.values()
            if node.up
            for replica, run in node.running.items()
            if run.phase is Phase.READY
            and run.placement.deployment == deployment
            and (placed := self.view.placements.get(replica)) is not None
            and placed.wanted is Wanted.RUN
        )


SERVING = frozenset({Phase.READY, Phase.DRAINING})
