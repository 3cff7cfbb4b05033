"""xLLM: one process per GPU, options in the manner of gflags (`--max_memory_utilization=0.86`), at home on Ascend.

Source: its documentation (cli_reference, launch_xllm) and metrics.cpp; it was not run here. It takes no API key: only
the network keeps strangers from its port, so the node's policy must allow it by name where engines have keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nebula_agent.engines.base import (
    Command,
    EngineInfo,
    Launch,
    Probe,
    completion_probe,
    embedding_probe,
    is_path,
    version_info,
)
from nebula_agent.engines.metrics import MetricNames
from nebula_agent.engines.options import has_any
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import DeploymentSpec

#: Its latencies are in milliseconds and in brpc's own form: the proxy measures them.
XLLM_NAMES = MetricNames(
    running=("num_running_requests",),
    waiting=("num_waiting_requests",),
    kv_cache_usage=("kv_cache_utilization_perc",),
    prompt_tokens=("num_processing_tokens_total_prompt",),
    generation_tokens=("num_processing_tokens_total_generated",),
    finished=("server_request_total_ok",),
    steps=("num_model_execution_total_eager",),
)
_DEVICE = {"ascend": "npu", "huawei": "npu", "nvidia": "cuda"}
#: Starts the other ranks and becomes rank 0; all are of one session, so that all are ended together.
_RANKS = """device=$1 port=$2 ranks=$3; shift 3; rank=1
while [ "$rank" -lt "$ranks" ]; do
  "$@" --devices="$device:$rank" --port="$((port + rank))" --node_rank="$rank" &
  rank=$((rank + 1))
done
exec "$@" --devices="$device:0" --port="$port" --node_rank=0"""


@dataclass(frozen=True, slots=True)
class Xllm:
    kind: str = "xllm"
    program_names: tuple[str, ...] = ("xllm",)
    package: str | None = None
    #: One per rank of a node with 16 GPUs at most, the last one for rendezvous.
    ports_needed: int = 17
    health_path: str = "/health"
    info_path: str = "/version"
    takes_key: bool = False
    names: MetricNames = XLLM_NAMES

    def why_unfit(self, spec: DeploymentSpec, gpus: int) -> str | None:
        if gpus == 0:
            return "xLLM runs on GPUs only: set gpus to 1 or more"
        if gpus >= self.ports_needed:
            return f"xLLM is started on at most {self.ports_needed - 1} GPUs of one node"
        if not is_path(spec.source):
            return "xLLM loads its model from a folder of this node: give `source` as a path"
        return "xLLM takes no adapters; leave `adapters` out" if spec.adapters else None

    def read_info(self, answer: Mapping[str, object]) -> EngineInfo:
        return version_info(answer)

    def command(self, launch: Launch) -> Command:
        spec = launch.spec
        words = [str(launch.program.path), f"--model={spec.source}", f"--model_id={launch.model}"]
        words += [f"--host={launch.host}", f"--nnodes={len(launch.gpus)}"]
        words.append(f"--master_node_addr=127.0.0.1:{launch.ports[-1]}")
        if launch.vendor in {"ascend", "huawei"} and not has_any(spec.args, {"communication-backend"}):
            words.append("--communication_backend=hccl")
        for name, value in spec.args.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words.append(f"--{name.replace('-', '_')}={text}")
        device = _DEVICE.get(launch.vendor, "cuda")
        argv = ("/bin/sh", "-c", _RANKS, "xllm", device, str(launch.port), str(len(launch.gpus)), *words)
        return Command(argv, frozen_map(launch.visible_gpus))

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        return embedding_probe(launch_model) if spec.args.get("task") == "embed" else completion_probe(launch_model)
