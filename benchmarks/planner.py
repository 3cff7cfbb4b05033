"""How long the planner thinks (GOALS S10): a full pass over 1,000 nodes and 10,000 replicas, and one after a change.

    python benchmarks/planner.py [--nodes 1000] [--replicas-per-node 10] [--deployments 100] [--rounds 20] [--json FILE]

Figures are wall seconds of one thread over a synthetic view: everything `step` does between the lease and the first
write (observe + reconcile), without signing and without the store. `full_pass` begins with nothing, as a new leader does;
the passes after a change keep the index, as the loop does. `after_a_second` is what comes each second at rest: a report
of every node, with figures and no news (making the reports is part of that figure).
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nebula_core.planning.index import ClusterIndex
from nebula_core.planning.memory import observe
from nebula_core.planning.policy import PlanPolicy
from nebula_core.planning.reconcile import reconcile
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import Deployment, DeploymentSpec
from nebula_core.records.node import DrainIntent, Gpu, Node, NodeIntent
from nebula_core.records.placement import Placement
from nebula_core.records.plan import Plan
from nebula_core.records.replica import Phase, ReplicaStatus
from nebula_core.records.report import NodeReport, ProxyReport
from nebula_core.records.sample import EngineSample, GpuSample
from nebula_core.records.snapshot import ClusterSnapshot

GIB = 1 << 30


def build(nodes: int, per_node: int, deployments: int) -> ClusterSnapshot:
    """Every node full but for two GPUs; each replica on one GPU, ready, with figures."""
    names = [f"n{number:04}" for number in range(nodes)]
    wanted = nodes * per_node // deployments
    desired = {
        f"d{number:03}": Deployment(
            name=f"d{number:03}", generation=1, spec=DeploymentSpec(source="sim", engine="simulated", replicas=wanted)
        )
        for number in range(deployments)
    }
    inventory = {
        name: Node(
            name=name,
            boot_id=name,
            version="0",
            hostname=name,
            address="10.0.0.1",
            engines=("simulated",),
            runtimes=("process",),
            gpus=tuple(
                Gpu(id=f"{name}-{index}", index=index, name="sim", memory_total_bytes=80 * GIB)
                for index in range(per_node + 2)
            ),
        )
        for name in names
    }
    placements: dict[str, Placement] = {}
    statuses: dict[str, list[ReplicaStatus]] = {name: [] for name in names}
    for number in range(nodes * per_node):
        deployment = f"d{number % deployments:03}"
        replica = f"{deployment}-r{number // deployments + 1}"
        node, gpu = names[number // per_node], number % per_node
        placements[replica] = Placement(
            replica=replica,
            deployment=deployment,
            node=node,
            gpus=(f"{node}-{gpu}",),
            generation=1,
            spec=desired[deployment].spec.model_copy(),
            epoch=1,
            revision=number,
        )
        statuses[node].append(
            ReplicaStatus(
                id=replica,
                deployment=deployment,
                model=deployment,
                node=node,
                gpus=(f"{node}-{gpu}",),
                engine="simulated",
                runtime="process",
                phase=Phase.READY,
                load_seconds=30.0,
                sample=EngineSample(requests_running=3, requests_waiting=0),
            )
        )
    view = ClusterSnapshot(
        incarnation="bench",
        revision=nodes * per_node,
        deployments=frozen_map(desired),
        nodes=frozen_map(inventory),
        placements=frozen_map(placements),
    )
    reports = [report(inventory[name], statuses[name], 1) for name in names]
    proxies = [
        ProxyReport(proxy="p1", sequence=1, pid=1, version="0", at=0, started_at=0, revision=view.revision, inflight={})
    ]
    return view.with_reports(reports, proxies, at=1000.0)


def report(node: Node, statuses: list[ReplicaStatus], sequence: int) -> NodeReport:
    return NodeReport(
        node=node.name,
        boot_id=node.boot_id,
        sequence=sequence,
        agent_pid=1,
        version="0",
        at=0,
        replicas=tuple(statuses),
        gpus=tuple(GpuSample(gpu=gpu.id, index=gpu.index, memory_used_bytes=0) for gpu in node.gpus),
    )


def measure(rounds: int, work: Callable[[int], Plan]) -> dict[str, float]:
    taken: list[float] = []
    for number in range(rounds):
        began = time.perf_counter()
        work(number)
        taken.append((time.perf_counter() - began) * 1000)
    ordered = sorted(taken)
    return {
        "median_ms": round(statistics.median(taken), 1),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 1),
        "max_ms": round(ordered[-1], 1),
    }


def scaled(view: ClusterSnapshot, name: str, by: int) -> ClusterSnapshot:
    former = view.deployments[name]
    spec = former.spec.model_copy(update={"replicas": former.spec.replicas + by})
    changed = former.model_copy(update={"spec": spec, "generation": 2})
    return replace(view, deployments=frozen_map({**view.deployments, name: changed}), revision=view.revision + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--replicas-per-node", type=int, default=10)
    parser.add_argument("--deployments", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    view = build(options.nodes, options.replicas_per_node, options.deployments)
    fresh = PlanPolicy(epoch=1)
    first = next(iter(view.reports))

    def full(_: int) -> Plan:
        index = ClusterIndex()
        return reconcile(view, observe(fresh, view, 1000.5, index), 1000.5, index)

    policy = observe(fresh, view, 1000.5)
    kept = ClusterIndex()

    def turn(moved: ClusterSnapshot, at: float) -> Plan:
        """As the loop does it, with an index kept from pass to pass."""
        nonlocal policy
        policy = observe(policy, moved, at, kept)
        return reconcile(moved, policy, at, kept)

    turn(view, 1000.5)

    def after_one_report(number: int) -> Plan:
        news = view.reports[first].report.model_copy(update={"sequence": number + 2})
        return turn(view.with_reports([news], at=1000.6), 1000.7 + number / 1000)

    def after_a_second(number: int) -> Plan:
        news = [one.report.model_copy(update={"sequence": number + 100}) for one in view.reports.values()]
        return turn(view.with_reports(news, at=1000.6), 1001.0 + number / 1000)

    def scale_one(number: int) -> Plan:
        return turn(scaled(view, "d007", 1 + number % 2), 1000.7 + number / 1000)

    empty = replace(view, placements=frozen_map(), reports=frozen_map())
    cold = empty.with_reports((report(node, [], 1) for node in view.nodes.values()), at=1000.0)

    def place_everything(_: int) -> Plan:
        return reconcile(cold, policy, 1000.7)

    drained = replace(
        view,
        intents=frozen_map(
            {n: NodeIntent(node=n, drain=DrainIntent(by="ops", since=0)) for n in list(view.nodes)[:100]}
        ),
    )

    def drain_a_tenth(_: int) -> Plan:
        return reconcile(drained, policy, 1000.7)

    unplaceable = replace(
        view,
        deployments=frozen_map(
            {**view.deployments}
            | {
                f"x{number}": Deployment(
                    name=f"x{number}",
                    generation=1,
                    spec=DeploymentSpec(source="sim", engine="simulated", replicas=100, gpus=8),
                )
                for number in range(10)
            }
        ),
    )

    figures = {
        "full_pass": measure(options.rounds, full),
        "pass_after_one_report": measure(options.rounds, after_one_report),
        "pass_after_a_second_of_all_reports": measure(options.rounds, after_a_second),
        "pass_after_scale_by_one": measure(options.rounds, scale_one),
        "place_everything_at_once": measure(max(1, options.rounds // 10), place_everything),
        "drain_a_tenth_of_the_nodes": measure(max(1, options.rounds // 5), drain_a_tenth),
        "ten_unplaceable_deployments": measure(
            max(1, options.rounds // 5), lambda _: reconcile(unplaceable, policy, 1000.7)
        ),
    }
    if len(place_everything(0).changes) != options.nodes * options.replicas_per_node or full(0).changes:
        raise SystemExit("the plans are wrong: these figures mean nothing")
    result = {
        "nodes": options.nodes,
        "replicas": options.nodes * options.replicas_per_node,
        "deployments": options.deployments,
        "rounds": options.rounds,
        "python": platform.python_version(),
        "figures": figures,
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
