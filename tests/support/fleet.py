"""A seeded fleet of views, as the Control API would answer them, and a Control that plays it: no network, no clock."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nebula_core.errors import NebulaError
from nebula_core.records.decision import AttemptRecord, CandidateRecord, DecisionRecord
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.event import Event
from nebula_core.records.node import DrainIntent
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import Bucket, PlacementChange, Plan, PlanEntry, PlannedFetch
from nebula_core.records.replica import EndpointAddress, Phase
from nebula_core.records.report import ModelTraffic
from nebula_core.records.sample import EngineSample, GpuSample, HostSample
from nebula_core.records.views import (
    ClusterView,
    DeploymentView,
    GpuView,
    LogLine,
    NodeView,
    PlanView,
    ProxyView,
    ReplicaView,
    RequestsPage,
    RequestView,
    WatchDelta,
    WatchSnapshot,
    WhoAmI,
)
from nebula_tui.adapters.chat import ChatDelta, ChatDone, ChatEvent, ChatOpened, ChatRequest
from nebula_tui.adapters.control import Connected, Lost, NotFound, WatchMessage

GIB = 2**30
#: 2026-09-25 14:22:07 UTC.
WALL = 1_790_346_127.0

_MODELS = (
    ("llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct", "vllm", 4, 0.71, 4120.0, 0.38),
    ("qwen3-32b", "Qwen/Qwen3-32B-FP8", "vllm", 1, 0.55, 9830.0, 0.24),
    ("deepseek-v3.2", "deepseek-ai/DeepSeek-V3.2", "sglang", 8, 0.96, 3310.0, 1.89),
    ("qwen3-vl-8b", "Qwen/Qwen3-VL-8B", "vllm", 1, 0.40, 2210.0, 0.30),
    ("bge-m3", "BAAI/bge-m3", "vllm", 1, 0.0, 0.0, 0.014),
    ("glm-4.6", "zai-org/GLM-4.6-FP8", "sglang", 2, 0.61, 1480.0, 0.64),
)


def gpu(node: str, index: int, *, util: float | None = 0.7, replica: str | None = None, **more: object) -> GpuView:
    total = 141 * GIB
    sample = GpuSample(
        gpu=f"GPU-{node}-{index}",
        index=index,
        utilization_ratio=util,
        memory_used_bytes=None if util is None else int(total * (0.1 + 0.83 * util)),
        memory_total_bytes=total,
        temperature_celsius=None if util is None else 42.0 + round(32 * util),
        power_watts=None if util is None else 90.0 + round(600 * util),
        fault=more.pop("fault", None),
    )
    return GpuView(
        id=f"GPU-{node}-{index}",
        index=index,
        name="H200",
        memory_total_bytes=total,
        sample=sample,
        replica=replica,
        **more,
    )


def node(name: str, gpus: Sequence[GpuView] = (), **more: object) -> NodeView:
    values: dict[str, object] = {
        "id": name,
        "agent_pid": 4127,
        "version": "0.1.0",
        "hostname": name,
        "address": "10.0.3.4",
        "state": "ready",
        "heartbeat_age_seconds": 0.4,
        "gpus": tuple(gpus),
        "driver_version": "580.95",
        "engines": ("vllm", "sglang"),
        "runtimes": ("docker", "process"),
        "host": HostSample(
            cpu_ratio=0.31,
            load_1m=12.4,
            memory_used_bytes=412 * GIB,
            memory_total_bytes=2048 * GIB,
            disk_used_bytes=5000 * GIB,
            disk_total_bytes=7000 * GIB,
            network_receive_bytes_per_second=8.1e8,
            network_send_bytes_per_second=9.6e8,
        ),
        "clock_skew_seconds": 0.003,
    }
    return NodeView.model_validate({**values, **more})


def replica(deployment: str, ordinal: int, node_name: str, **more: object) -> ReplicaView:
    values: dict[str, object] = {
        "id": f"{deployment}-r{ordinal}",
        "deployment": deployment,
        "model": deployment,
        "node": node_name,
        "engine": "vllm",
        "engine_version": "0.25.0",
        "runtime": "process",
        "phase": Phase.READY,
        "phase_seconds": 273_840.0,
        "wanted": "run",
        "generation": 3,
        "endpoint": EndpointAddress(host="10.0.3.4", port=20_010 + ordinal),
        "pid": 51_000 + ordinal,
        "started_at": WALL - 273_840.0,
        "load_seconds": 94.0,
        "sample_age_seconds": 0.6,
    }
    return ReplicaView.model_validate({**values, **more})


def sample(kv: float, running: int, waiting: int, out: float, ttft: float, **more: object) -> EngineSample:
    values: dict[str, object] = {
        "requests_running": running,
        "requests_waiting": waiting,
        "kv_cache_usage": kv,
        "kv_cache_tokens": 1_048_576,
        "generation_tokens_per_second": out,
        "prompt_tokens_per_second": out * 2.7,
        "ttft_p50_seconds": ttft * 0.6,
        "ttft_p95_seconds": ttft,
        "itl_p95_seconds": 0.017,
        "prefix_cache_hit_ratio": 0.61,
        "prefix_cache_queries_total": 10_000.0,
        "prefix_cache_hits_total": 6_100.0,
        "preemptions_total": 3.0,
    }
    return EngineSample.model_validate({**values, **more})


def deployment(name: str, ready: int, wanted: int, **more: object) -> DeploymentView:
    spec = more.pop("spec", None) or DeploymentSpec(source=f"org/{name}", replicas=wanted)
    values: dict[str, object] = {
        "name": name,
        "generation": 3,
        "spec": spec,
        "replicas_wanted": wanted,
        "replicas_ready": ready,
        "replicas_starting": max(0, wanted - ready),
        "status": "ready" if ready >= wanted else f"starting {wanted - ready}",
        "updated_by": "li",
        "traffic": None,
    }
    return DeploymentView.model_validate({**values, **more})


def traffic(model: str, out: float, ttft: float) -> ModelTraffic:
    return ModelTraffic(
        model=model,
        requests_per_second=out / 180,
        generation_tokens_per_second=out,
        prompt_tokens_per_second=out * 2.7,
        rejected_per_second=0.4 if ttft > 1 else 0.0,
        failed_per_second=0.0,
        retried_per_second=0.1 if ttft > 1 else 0.0,
        waiting=3 if ttft > 1 else 0,
        ttft_p50_seconds=ttft * 0.5,
        ttft_p95_seconds=ttft,
        ttft_p99_seconds=ttft * 2.2,
        itl_p95_seconds=0.017 + ttft / 100,
        duration_p95_seconds=6 + ttft * 4,
    )


def cluster(**more: object) -> ClusterView:
    values: dict[str, object] = {
        "version": "0.1.0",
        "revision": 881,
        "incarnation": "c0ffee",
        "leader": "control-1",
        "epoch": 7,
        "store_reachable": True,
        "snapshot_age_seconds": 0.2,
        "proxies": (
            ProxyView(id="proxy-1", pid=811, version="0.1.0", heartbeat_age_seconds=0.4, inflight=96, connections=3104),
            ProxyView(id="proxy-2", pid=812, version="0.1.0", heartbeat_age_seconds=0.7, inflight=88, connections=2871),
        ),
        "control_pid": 800,
    }
    return ClusterView.model_validate({**values, **more})


def events(wall: float = WALL) -> tuple[Event, ...]:
    told = (
        (2, "route", "replica/deepseek-v3.2-r2", "spill to r4: kv 96% > 95%", "info", "proxy-2", "ok"),
        (9, "scale", "deployment/glm-4.6", "2 → 3 replicas, generation 12", "info", "li", "applied"),
        (27, "ready", "replica/qwen3-32b-r8", "warm in 94s (weights cached)", "info", "agent", "ok"),
        (55, "denied", "node/node-012", "drain: role viewer may not", "warn", "ci-bot", "403"),
        (115, "drain", "node/node-031", "3 replicas, 14 in flight, grace 600 s", "warn", "zhang", "running"),
        (135, "xid", "node/node-007", "gpu3: Xid 79, GPU has fallen off the bus", "crit", "agent", "cordoned"),
        (157, "shed", "deployment/deepseek-v3.2", "429 for 38 requests, Retry-After 4 s", "warn", "proxy-1", "ok"),
        (245, "login", "cluster/prod-sh", "key ops-ci from 10.4.0.9", "info", "li", "ok"),
        (263, "pulled", "node/node-004", "image vllm v0.25.0 (19.5 GB)", "info", "agent", "ok"),
        (427, "restart", "replica/qwen3-vl-8b-r4", "exit 137 (out of memory), again in 20 s", "warn", "agent", "auto"),
        (756, "lost", "node/node-019", "no heartbeat for 31 s: 2 replicas replaced", "crit", "planner", "auto"),
        (972, "uncordon", "node/node-002", "after burn-in of 2 h", "info", "li", "ok"),
    )
    found = [
        Event(
            id=f"{int((wall - ago) * 1000)}-0",
            at=wall - ago,
            kind=kind,
            object=name,
            message=text,
            severity=level,
            actor=who,
            result=result,
        )
        for ago, kind, name, text, level, who, result in told
    ]
    return tuple(reversed(found))


def small_fleet() -> WatchSnapshot:
    """What `nebula up` gives on a machine without GPUs: two simulated nodes of four GPUs, one model, two replicas."""
    nodes = []
    replicas = []
    for place, name in enumerate(("sim-a", "sim-b")):
        own = f"demo-r{place + 1}"
        gpus = [
            gpu(
                name,
                index,
                util=(0.62 + 0.1 * place) if index == 0 else 0.0,
                replica=own if index == 0 else None,
                simulated=True,
            )
            for index in range(4)
        ]
        nodes.append(
            node(
                name,
                gpus,
                simulated=True,
                replicas=(own,),
                engines=("simulated",),
                driver_version=None,
                address="127.0.0.1",
            )
        )
        figures = sample(0.34 + 0.08 * place, 5 + place, 0, 212.0 + 31 * place, 0.11, kv_cache_tokens=65_536)
        replicas.append(
            replica(
                "demo",
                place + 1,
                name,
                engine="simulated",
                engine_version="0.1.0",
                gpus=(f"GPU-{name}-0",),
                gpu_indexes=(0,),
                simulated=True,
                sample=figures,
                inflight=5 + place,
                load_seconds=1.4,
                phase_seconds=754.0,
                started_at=WALL - 760,
            )
        )
    spec = DeploymentSpec(source="sim", engine="simulated", replicas=2)
    told = (
        Event(
            id="1-0",
            at=WALL - 760,
            kind="up",
            object="cluster/local",
            message="cluster started in one command",
            actor="nebula up",
            result="ok",
        ),
        Event(
            id="2-0",
            at=WALL - 758,
            kind="placed",
            object="replica/demo-r1",
            message="on sim-a gpu 0",
            actor="planner",
            result="ok",
        ),
        Event(
            id="3-0",
            at=WALL - 758,
            kind="placed",
            object="replica/demo-r2",
            message="on sim-b gpu 0",
            actor="planner",
            result="ok",
        ),
        Event(
            id="4-0",
            at=WALL - 756,
            kind="ready",
            object="replica/demo-r1",
            message="ready in 1.4 s",
            actor="sim-a",
            result="ok",
        ),
        Event(
            id="5-0",
            at=WALL - 756,
            kind="ready",
            object="replica/demo-r2",
            message="ready in 1.4 s",
            actor="sim-b",
            result="ok",
        ),
    )
    return WatchSnapshot(
        cluster=cluster(
            simulated=True,
            proxies=(
                ProxyView(
                    id="proxy-1", pid=811, version="0.1.0", heartbeat_age_seconds=0.4, inflight=11, connections=14
                ),
            ),
        ),
        nodes=tuple(nodes),
        deployments=(deployment("demo", 2, 2, spec=spec, simulated=True, traffic=traffic("demo", 455.0, 0.12)),),
        replicas=tuple(replicas),
        events=told,
    )


def big_fleet(*, nodes: int = 60, seed: int = 7) -> WatchSnapshot:
    """A fleet with everything on it: hot, lost, suspect, draining, cordoned, faulty, loading, failed."""
    rng = random.Random(seed)
    names = [f"node-{place:03d}" for place in range(nodes)]
    free: dict[str, list[int]] = {name: list(range(8)) for name in names}
    replicas: list[ReplicaView] = []
    owner: dict[tuple[str, int], str] = {}
    deployments = []
    spot = 0
    for model, source, engine, gpus_each, kv, out, ttft in _MODELS:
        wanted = {1: 8, 2: 3, 4: 6, 8: 4}[gpus_each]
        if model == "bge-m3":
            wanted = 2
        if model == "qwen3-vl-8b":
            wanted = 4
        ready = 0
        for ordinal in range(1, wanted + 1):
            while len(free[names[spot % nodes]]) < gpus_each:
                spot += 1
            name = names[spot % nodes]
            taken = tuple(free[name][:gpus_each])
            del free[name][:gpus_each]
            spot += 1
            share = out / wanted
            own_kv = min(1.0, max(0.0, kv + (rng.random() - 0.6) * 0.08)) if kv else 0.0
            more: dict[str, object] = {}
            if model == "deepseek-v3.2" and ordinal == 2:
                own_kv = 0.96
            elif kv > 0.9:
                own_kv = 0.84 + ordinal / 100
            phase = Phase.READY
            if model == "qwen3-vl-8b" and ordinal == 4:
                phase = Phase.LOADING
                more = {
                    "phase_seconds": 41.0,
                    "sample": None,
                    "load_seconds": None,
                    "started_at": WALL - 41,
                    "inflight": 0,
                    "restarts": 2,
                }
            elif model == "glm-4.6" and ordinal == 3:
                phase = Phase.FAILED
                more = {
                    "phase_seconds": 12.0,
                    "phase_reason": "exit 1: no kernel image is available",
                    "sample": None,
                    "restarts": 3,
                    "pid": None,
                    "failure_log": ("RuntimeError: CUDA error: no kernel image is available for execution",),
                }
            elif model == "llama-3.3-70b" and ordinal == 4:
                phase = Phase.DRAINING
                more = {"wanted": "drain", "phase_seconds": 115.0}
            ready += phase is Phase.READY
            id_ = f"{model}-r{ordinal}"
            waiting = 9 if own_kv >= 0.95 else int(own_kv * 3) if own_kv > 0.85 else 0
            values: dict[str, object] = {
                "engine": engine,
                "gpu_indexes": taken,
                "gpus": tuple(f"GPU-{name}-{index}" for index in taken),
                "phase": phase,
                "inflight": int(own_kv * 50),
                "sample": sample(
                    own_kv,
                    int(own_kv * 50),
                    waiting,
                    share * (0.9 + rng.random() / 5),
                    ttft * (1 + (own_kv > 0.95)),
                    prefix_cache_hit_ratio=0.18 + ordinal / 40,
                ),
            }
            replicas.append(replica(model, ordinal, name, **{**values, **more}))
            owner.update({(name, index): id_ for index in taken})
        spec = DeploymentSpec(
            source=source,
            engine="vllm" if engine == "vllm" else "sglang",
            replicas=wanted,
            gpus=gpus_each,
            args={"max-model-len": 131072, "tensor-parallel-size": gpus_each},
        )
        reasons = ("r3 failed: exit 1: no kernel image is available",) if model == "glm-4.6" else ()
        deployments.append(
            deployment(
                model,
                ready,
                wanted,
                spec=spec,
                reasons=reasons,
                traffic=traffic(model, out, ttft),
                status="ready" if ready == wanted else f"{ready} of {wanted}",
            )
        )
    views = []
    for place, name in enumerate(names):
        more = {"labels": {"rack": f"r{1 + place // 5:02d}", "dc": "sh-2"}}
        row_heat = 0.5 + 0.5 * math.sin(place / 7)
        gpus = []
        for index in range(8):
            own = owner.get((name, index))
            util = max(0.0, min(1.0, row_heat * 0.4 + rng.random() * 0.5 + (0.25 if own else -0.25)))
            fault = "Xid 79: GPU has fallen off the bus" if (place, index) == (7, 3) else None
            gpus.append(
                gpu(
                    name,
                    index,
                    util=util if fault is None else None,
                    replica=own,
                    fault=fault,
                    cordoned=fault is not None,
                )
            )
        if place == 19:
            more |= {"state": "lost", "heartbeat_age_seconds": 48.0}
        elif place == 23:
            more |= {"state": "suspect", "heartbeat_age_seconds": 7.2}
        elif place == 31:
            more |= {"draining": True, "drain": DrainIntent(by="zhang", since=WALL - 115, reason="new NIC")}
        elif place == 28:
            more |= {"cordoned": True}
        elif place == 12:
            more |= {"clock_skew_seconds": 1.8}
        elif place == 44:
            more |= {"host": HostSample(cpu_ratio=0.2, disk_used_bytes=6510 * GIB, disk_total_bytes=7000 * GIB)}
        views.append(
            node(name, gpus, replicas=tuple(sorted({own for (on, _), own in owner.items() if on == name})), **more)
        )
    return WatchSnapshot(
        cluster=cluster(), nodes=tuple(views), deployments=tuple(deployments), replicas=tuple(replicas), events=events()
    )


def wavered(snapshot: WatchSnapshot, tick: int, *, seed: int = 3) -> WatchDelta:
    """The next second: figures move, smoothly, the same way each time."""
    nodes = []
    for place, view in enumerate(snapshot.nodes):
        swing = 0.12 * math.sin(tick / 6 + place)
        gpus = tuple(
            one
            if one.sample is None or one.sample.utilization_ratio is None
            else one.model_copy(
                update={
                    "sample": one.sample.model_copy(
                        update={
                            "utilization_ratio": max(
                                0.0,
                                min(
                                    1.0,
                                    one.sample.utilization_ratio
                                    + (swing if one.sample.utilization_ratio > 0.02 else 0),
                                ),
                            )
                        }
                    )
                }
            )
            for one in view.gpus
        )
        nodes.append(view.model_copy(update={"gpus": gpus}))
    rng = random.Random(seed * 10_000 + tick)
    replicas = []
    for place, one in enumerate(snapshot.replicas):
        if one.sample is None:
            continue
        wave = 0.72 + 0.3 * math.sin(tick / 13 + place * 0.2) + 0.1 * math.sin(tick / 3.1) + 0.12 * (rng.random() - 0.5)
        out = one.sample.generation_tokens_per_second
        ttft = one.sample.ttft_p95_seconds
        replicas.append(
            one.model_copy(
                update={
                    "sample": one.sample.model_copy(
                        update={
                            "generation_tokens_per_second": None if out is None else out * wave,
                            "ttft_p95_seconds": None if ttft is None else ttft * (0.6 + wave / 2),
                            "kv_cache_usage": None
                            if (kv := one.sample.kv_cache_usage) is None
                            else min(kv, kv * (0.85 + wave / 5)),
                            "requests_running": None
                            if (running := one.sample.requests_running) is None
                            else round(running * wave),
                        }
                    )
                }
            )
        )
    changed = []
    for one_deployment in snapshot.deployments:
        had = one_deployment.traffic
        if had is None:
            continue
        wave = 0.9 + 0.3 * math.sin(tick / 11) + 0.2 * (rng.random() - 0.5)
        update = {
            name: None if value is None else value * wave
            for name, value in had.model_dump().items()
            if name.endswith("_seconds")
        }
        changed.append(one_deployment.model_copy(update={"traffic": had.model_copy(update=update)}))
    return WatchDelta(nodes=tuple(nodes), replicas=tuple(replicas), deployments=tuple(changed))


def requests_page() -> RequestsPage:
    """What is open in a busy fleet, and what ended lately: every state there is."""
    dice = random.Random(9)
    models = ("deepseek-v3.2", "llama-3.3-70b", "qwen3-32b")
    items = []
    for number in range(26):
        state: Any = ("streaming", "streaming", "prefill", "waiting", "streaming", "streaming", "running")[number % 7]
        begun = state == "streaming"
        age = 184.0 - 6.3 * number
        items.append(
            RequestView(
                id=f"req-4bf92f3577-{0x9F21 + 77 * number:x}",
                proxy=f"proxy-{1 + number % 2}",
                state=state,
                stalled=("engine" if number % 2 else "client") if begun and number % 6 == 5 else None,
                model=models[number % 3],
                replica=None if state == "waiting" else f"{models[number % 3]}-r{1 + number % 4}",
                path="/v1/chat/completions",
                stream=state != "running",
                key_id="k1",
                key_name=("batch", "prod", "eval")[number % 3],
                client="10.0.3.7",
                age_seconds=age,
                wait_seconds=age if state == "waiting" else (0.83 if number % 4 == 1 else None),
                ttft_seconds=round(dice.uniform(0.9, 2.6), 2) if begun else None,
                silent_seconds=3.4 if begun and number % 6 == 5 else 0.02,
                tokens=dice.randrange(40, 3900) if begun else 0 if state != "running" else None,
                tokens_per_second=dice.uniform(26, 86) if begun else None,
                request_bytes=dice.choice((1402, 812, 19_871, 64_011)),
                sent_bytes=dice.randrange(10_000, 400_000) if begun else 0,
                attempts=0 if state == "waiting" else 2 if number == 4 else 1,
                resumes=1 if number == 4 else 0,
            )
        )
    endings = (("ok", 200), ("overloaded", 429), ("ok", 200), ("broken", 502), ("client_gone", 499), ("ok", 200))
    for number, (outcome, status) in enumerate(endings):
        served = status == 200
        items.append(
            RequestView(
                id=f"req-4bf92f3577-{0x9000 - 31 * number:x}",
                proxy="proxy-1",
                state="ended",
                outcome=outcome,
                status=status,
                model=models[number % 3],
                replica=None if status == 429 else f"{models[number % 3]}-r1",
                path="/v1/chat/completions",
                stream=True,
                key_id="k1",
                key_name="prod",
                at=WALL - number,
                age_seconds=7.1 + number,
                ttft_seconds=0.4 if served else None,
                tokens=350 + number if served else None,
                tokens_per_second=61.0 if served else None,
                request_bytes=900,
                sent_bytes=12_000,
                attempts=0 if status == 429 else 1,
                kept_because="sample",
                entry=f"{1000 - number}-0",
            )
        )
    return RequestsPage(
        items=tuple(items), inflight=1214, waiting=88, prefill=102, streaming=1019, running=5, stalled=3, shown=26
    )


def decision_record(request: str, **changes: Any) -> DecisionRecord:
    """A retried request with all its figures."""
    best = CandidateRecord(
        replica="llama-3.3-70b-r2", score=14.0, inflight=9, elsewhere=5, waiting=0, kv_cache_usage=0.66,
        sample_age_seconds=0.4, saturation=0.69, prefix_ratio=0.61, chosen=True,
    )  # fmt: skip
    others = (
        CandidateRecord(
            replica="llama-3.3-70b-r1", score=17.0, inflight=12, elsewhere=5, waiting=0, kv_cache_usage=0.71,
            sample_age_seconds=0.6, saturation=0.75, prefix_ratio=0.0, lost_because="score 17 above 14",
        ),
        CandidateRecord(
            replica="llama-3.3-70b-r3", score=31.0, inflight=20, elsewhere=11, waiting=9, kv_cache_usage=0.97,
            sample_age_seconds=0.5, saturation=1.13, prefix_ratio=0.0, lost_because="full (113%)",
        ),
        CandidateRecord(replica="llama-3.3-70b-r4", standing="out", lost_because="it cannot be reached"),
    )  # fmt: skip
    failed = AttemptRecord(
        replica="llama-3.3-70b-r4", strategy="least_pending", reason="lowest", at_seconds=0.83,
        candidates=(
            CandidateRecord(replica="llama-3.3-70b-r4", score=2.0, inflight=2, waiting=0, kv_cache_usage=0.2, chosen=True,
                            sample_age_seconds=0.9, saturation=0.21),
            best.model_copy(update={"chosen": False, "lost_because": "score 14 above 2"}),
        ),
        candidates_total=4, trouble="lost", detail="the connection was reset",
    )  # fmt: skip
    served = AttemptRecord(
        replica="llama-3.3-70b-r2", strategy="least_pending", reason="lowest", at_seconds=1.12,
        candidates=(best, *others), candidates_total=4, first_byte_seconds=1.9,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "id": request, "proxy": "proxy-2", "at": WALL - 17.2, "path": "/v1/chat/completions", "model": "llama-3.3-70b",
        "key_id": "k1", "key_name": "prod", "stream": True, "outcome": "ok", "status": 200, "kept_because": "retried",
        "admission": "wait", "wait_seconds": 0.83, "attempts": (failed, served), "ttft_seconds": 2.01,
        "tpot_seconds": 0.0135, "overhead_seconds": 0.0004, "duration_seconds": 17.2, "prompt_tokens": 1402,
        "completion_tokens": 1121, "request_bytes": 6120, "response_bytes": 281_000,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }  # fmt: skip
    return DecisionRecord(**(fields | changes))


@dataclass
class FakeControl:
    """Plays a snapshot and what tests put in `feed`; answers plans; records the calls."""

    snapshot: WatchSnapshot
    role: str = "admin"
    calls: list[tuple[object, ...]] = field(default_factory=list)
    error: NebulaError | None = None
    lines: dict[str, list[LogLine]] = field(default_factory=dict)
    base_url: str | None = "http://127.0.0.1:8081/v1"
    page: RequestsPage = field(default_factory=RequestsPage)
    records: dict[str, DecisionRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.feed: asyncio.Queue[WatchMessage] = asyncio.Queue()
        self.log_feed: dict[str, asyncio.Queue[LogLine | NebulaError]] = {}
        self.closed = False
        #: Holds the plans of `scale` until a test lets them go.
        self.gate: asyncio.Event | None = None

    async def whoami(self) -> WhoAmI:
        return WhoAmI(name="ops", role=self.role, key_id="k1")

    async def openai_base_url(self) -> str | None:
        return self.base_url

    async def watch(self) -> AsyncIterator[WatchMessage]:
        yield Connected()
        yield self.snapshot
        while True:
            message = await self.feed.get()
            if isinstance(message, WatchSnapshot):
                self.snapshot = message
            yield message

    def drop(self, error: NebulaError) -> None:
        self.feed.put_nowait(Lost(error, 1.0))

    async def logs(self, replica: str, *, tail: int = 200, follow: bool = True) -> AsyncIterator[LogLine]:
        self.calls.append(("logs", replica, tail, follow))
        for line in self.lines.get(replica, ()):
            yield line
        queue = self.log_feed.setdefault(replica, asyncio.Queue())
        while follow:
            given = await queue.get()
            if isinstance(given, NebulaError):
                raise given
            yield given

    async def events(self, *, count: int = 200) -> tuple[Event, ...]:
        return self.snapshot.events[-count:]

    async def requests(self) -> RequestsPage:
        if self.error is not None:
            raise self.error
        return self.page

    async def request(self, request_id: str) -> DecisionRecord:
        self.calls.append(("request", request_id))
        found = self.records.get(request_id)
        if found is None:
            raise NotFound(f"no proxy has {request_id!r} open, and it left no record", hint="a share is recorded")
        return found

    async def cancel(self, request_id: str, *, dry_run: bool) -> PlanView:
        self.calls.append(("cancel", request_id, None, dry_run))
        if self.error is not None:
            raise self.error
        verb = "cancels" if dry_run else "cancelled"
        words = f"{verb} {request_id} (llama-3.3-70b, on llama-3.3-70b-r2, key prod, open for 17.2 s)"
        return PlanView(dry_run=dry_run, summary=words, plan=Plan(revision=882), inflight_affected=1)

    async def scale(self, deployment: str, replicas: int, *, dry_run: bool) -> PlanView:
        if self.gate is not None:
            await self.gate.wait()
        return self._answer("scale", deployment, replicas, dry_run=dry_run)

    async def restart(self, kind: str, name: str, *, dry_run: bool) -> PlanView:
        return self._answer("restart", f"{kind}/{name}", None, dry_run=dry_run)

    async def drain(self, kind: str, name: str, *, dry_run: bool) -> PlanView:
        return self._answer("drain", f"{kind}/{name}", None, dry_run=dry_run)

    async def cordon(self, node: str, *, dry_run: bool) -> PlanView:
        return self._answer("cordon", node, None, dry_run=dry_run)

    async def uncordon(self, node: str, *, dry_run: bool) -> PlanView:
        return self._answer("uncordon", node, None, dry_run=dry_run)

    async def aclose(self) -> None:
        self.closed = True

    def _answer(self, verb: str, name: str, replicas: int | None, *, dry_run: bool) -> PlanView:
        self.calls.append((verb, name, replicas, dry_run))
        if self.error is not None:
            raise self.error
        if verb == "scale" and replicas is not None:
            return self._scaled(name, replicas, dry_run=dry_run)
        if verb == "drain":
            return self._drained(name.partition("/")[2], dry_run=dry_run)
        return PlanView(dry_run=dry_run, summary="nothing moves", plan=Plan(revision=882))

    def _scaled(self, name: str, replicas: int, *, dry_run: bool) -> PlanView:
        view = next(one for one in self.snapshot.deployments if one.name == name)
        own = [one for one in self.snapshot.replicas if one.deployment == name]
        changes = []
        for ordinal in range(len(own) + 1, replicas + 1):
            target = self.snapshot.nodes[-1]
            free = [one for one in target.gpus if one.replica is None][: max(1, view.spec.gpus)]
            placed = Placement(
                replica=f"{name}-r{ordinal}",
                deployment=name,
                node=target.id,
                gpus=tuple(one.id for one in free),
                generation=4,
                spec=view.spec,
                epoch=7,
                revision=882,
            )
            changes.append(
                PlacementChange(
                    replica=placed.replica, placement=placed, reason="most room of 2 nodes that fit; spread over nodes"
                )
            )
        for one in own[replicas:]:
            placed = Placement(
                replica=one.id,
                deployment=name,
                node=one.node,
                gpus=one.gpus,
                wanted=Wanted.DRAIN,
                generation=4,
                spec=view.spec,
                epoch=7,
                revision=882,
            )
            changes.append(
                PlacementChange(replica=one.id, placement=placed, reason="one more than wanted, the youngest")
            )
        plan = Plan(changes=tuple(changes), revision=882)
        fetch = PlannedFetch(
            node=self.snapshot.nodes[-1].id,
            kind="model",
            name=view.spec.source,
            origin="hub",
            size_bytes=61 * GIB,
            replicas=(f"{name}-r{len(own) + 1}",),
        )
        more = replicas > len(own)
        return PlanView(
            dry_run=dry_run,
            summary=plan.summary,
            plan=plan,
            inflight_affected=sum(one.inflight for one in own[replicas:]),
            last_ready=replicas == 0,
            estimated_ready_seconds=1.4 if more else None,
            fetches=(fetch,) if more and view.spec.engine != "simulated" else (),
        )

    def _drained(self, name: str, *, dry_run: bool) -> PlanView:
        on_it = [one for one in self.snapshot.replicas if name in (one.node, one.id)]
        entries = tuple(
            PlanEntry(
                bucket=Bucket.MOVING,
                deployment=one.deployment,
                replica=one.id,
                node=one.node,
                reason="its node is drained: a replacement starts first",
            )
            for one in on_it
        )
        return PlanView(
            dry_run=dry_run,
            summary=f"moves {len(on_it)} off {name}",
            plan=Plan(entries=entries, revision=882),
            inflight_affected=sum(one.inflight for one in on_it),
            last_ready=False,
            estimated_ready_seconds=94.0 if on_it else None,
        )


@dataclass
class FakeChat:
    """Answers with prepared pieces; `gate` holds the stream after the first until a test lets it go."""

    pieces: Sequence[str] = ("## Hello\n\n", "from ", "the ", "**replica**.")
    replica: str | None = "demo-r1"
    error: NebulaError | None = None
    gate: asyncio.Event | None = None
    #: Called before each piece after the first: a test lets its clock go on.
    tick: Callable[[], None] | None = None
    requests: list[ChatRequest] = field(default_factory=list)
    request_id: str | None = "c-1"
    closed: bool = False

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        self.requests.append(request)
        yield ChatOpened(replica=request.replica or self.replica, decision="least_pending", request_id=self.request_id)
        for place, piece in enumerate(self.pieces):
            if place == 1 and self.gate is not None:
                await self.gate.wait()
            if place and self.tick is not None:
                self.tick()
            if place == 2 and self.error is not None:
                raise self.error
            yield ChatDelta(piece, 0.21 if place == 0 else None)
        yield ChatDone("stop", 12, len(self.pieces), 0.5)

    async def aclose(self) -> None:
        self.closed = True


def log_lines(source: str, count: int, *, at: float = WALL) -> list[LogLine]:
    told = (
        "INFO  Avg prompt 9132.4 tok/s, gen 3310.2 tok/s, Running 48, Waiting 9, KV 96.1%, prefix hit 18.2%",
        "WARN  preempted seq c-9fa8 (recompute): kv blocks exhausted",
        "INFO  POST /v1/chat/completions 200 in=812 out=1208 ttft=0.31s",
        "INFO  chunked prefill 8192/23110",
        "ERROR upstream first-byte 5.02s > slo 5s; hedged to r4",
        "INFO  route c-9fb1 model=deepseek-v3.2 -> r4 (kv 86%) spill from r2 (kv 96% > 95%)",
    )
    return [
        LogLine(
            at=at - (count - place) * 0.37,
            source=source,
            text=told[(place * 7 + len(source)) % len(told)],
            id=f"{place}-0",
        )
        for place in range(count)
    ]
