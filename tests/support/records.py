"""Builders of records with only what a test cares about."""

from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.replica import EndpointAddress, Phase, ReplicaStatus
from nebula_core.records.report import NodeReport, ProxyReport


def a_placement(replica: str = "chat-r1", node: str = "n1", **changes: object) -> Placement:
    values: dict[str, object] = {
        "replica": replica,
        "deployment": "chat",
        "node": node,
        "gpus": ("GPU-1",),
        "wanted": Wanted.RUN,
        "generation": 1,
        "spec": DeploymentSpec(source="org/model"),
        "epoch": 1,
        "revision": 1,
    }
    return Placement.model_validate(values | changes)


def a_status(replica: str = "chat-r1", node: str = "n1", **changes: object) -> ReplicaStatus:
    values: dict[str, object] = {
        "id": replica,
        "deployment": "chat",
        "model": "chat",
        "node": node,
        "engine": "vllm",
        "runtime": "process",
        "phase": Phase.READY,
        "endpoint": EndpointAddress(host="10.0.0.1", port=20000),
    }
    return ReplicaStatus.model_validate(values | changes)


def a_report(node: str = "n1", sequence: int = 1, **changes: object) -> NodeReport:
    values: dict[str, object] = {
        "node": node,
        "boot_id": "boot-1",
        "sequence": sequence,
        "agent_pid": 100,
        "version": "0",
        "at": 1_000.0 + sequence,
    }
    return NodeReport.model_validate(values | changes)


def a_proxy_report(proxy: str = "p1", sequence: int = 1, **changes: object) -> ProxyReport:
    values: dict[str, object] = {
        "proxy": proxy,
        "sequence": sequence,
        "pid": 200,
        "version": "0",
        "at": 1_000.0 + sequence,
        "started_at": 900.0,
        "revision": 0,
    }
    return ProxyReport.model_validate(values | changes)
