"""vLLM: `vllm serve`, on GPUs or, for tests and small models, on the CPU. vLLM-Ascend is the same program on other GPUs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from nebula_agent.engines.base import (
    Command,
    EngineInfo,
    Launch,
    Probe,
    completion_probe,
    embedding_probe,
    version_info,
)
from nebula_agent.engines.metrics import MetricNames
from nebula_agent.engines.options import has_any, options
from nebula_agent.engines.versions import Known, knows
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import DeploymentSpec

#: Newest first (control_plane, 3).
VLLM_NAMES = MetricNames(
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    kv_cache_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    kv_cache_info=("vllm:cache_config_info", "kv_cache_size_tokens", "num_gpu_blocks", "block_size"),
    prompt_tokens=("vllm:prompt_tokens_total",),
    generation_tokens=("vllm:generation_tokens_total",),
    cached_prompt_tokens=("vllm:prompt_tokens_cached_total",),
    prefix_queries=("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    prefix_hits=("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    hit_ratio=("vllm:gpu_prefix_cache_hit_rate",),
    preemptions=("vllm:num_preemptions_total",),
    finished=("vllm:request_success_total",),
    steps=("vllm:iteration_tokens_total_count",),
    ttft=("vllm:time_to_first_token_seconds",),
    itl=("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    known=frozen_map(
        {
            # Both names from 0.9 to 0.10, the new ones alone since 0.11.
            "vllm:kv_cache_usage_perc": Known(since=(0, 9)),
            "vllm:gpu_cache_usage_perc": Known(until=(0, 11), unsure=False),
            "vllm:prefix_cache_queries_total": Known(since=(0, 9)),
            "vllm:gpu_prefix_cache_queries_total": Known(since=(0, 8), until=(0, 11), unsure=False),
            "vllm:prefix_cache_hits_total": Known(since=(0, 9)),
            "vllm:gpu_prefix_cache_hits_total": Known(since=(0, 8), until=(0, 11), unsure=False),
            # v0 had a gauge of the ratio and no counters.
            "vllm:gpu_prefix_cache_hit_rate": Known(until=(0, 9), unsure=False),
            "vllm:inter_token_latency_seconds": Known(since=(0, 11)),
            "vllm:time_per_output_token_seconds": Known(until=(0, 11), unsure=False),
        }
    ),
)

_QUIET_OPTION = "disable-access-log-for-endpoints"
#: Asked every second by the agent: in the log they would bury what the engine says.
QUIET_PATHS = "/health,/metrics,/v1/models"

#: Options we set ourselves: given to a version that does not have one, it ends the start.
_OPTIONS: Mapping[str, Known] = frozen_map(
    {
        # SIGTERM lets requests finish first.
        "shutdown-timeout": Known(since=(0, 18)),
        # Tried with 0.32; earlier versions were not looked at.
        _QUIET_OPTION: Known(since=(0, 32), unsure=False),
    }
)
_PARALLEL = frozenset({"tensor-parallel-size", "tp", "pipeline-parallel-size", "pp", "data-parallel-size", "dp"})


@dataclass(frozen=True, slots=True)
class Vllm:
    kind: str = "vllm"
    program_names: tuple[str, ...] = ("vllm",)
    package: str | None = "vllm"
    #: One serves; vLLM counts up from VLLM_PORT for its own processes, the last two are for rendezvous.
    ports_needed: int = 8
    health_path: str = "/health"
    info_path: str = "/version"
    takes_key: bool = True
    names: MetricNames = VLLM_NAMES

    def why_unfit(self, spec: DeploymentSpec, gpus: int) -> str | None:
        del spec, gpus
        return None

    def read_info(self, answer: Mapping[str, object]) -> EngineInfo:
        return version_info(answer)

    def command(self, launch: Launch) -> Command:
        spec, version = launch.spec, launch.program.version
        argv = [
            *(str(launch.program.path), "serve", spec.source),
            *("--host", launch.host, "--port", str(launch.port), "--served-model-name", launch.model),
        ]
        if len(launch.gpus) > 1 and not has_any(spec.args, _PARALLEL):
            argv += ["--tensor-parallel-size", str(len(launch.gpus))]
        if not launch.gpus and not has_any(spec.args, {"enforce-eager", "compilation-config", "optimization-level"}):
            # Compiling for the CPU takes minutes and needs a compiler.
            argv.append("--enforce-eager")
        if not has_any(spec.args, {"shutdown-timeout"}) and knows(_OPTIONS, "shutdown-timeout", version):
            # Less than what the agent waits before it kills the group.
            argv += ["--shutdown-timeout", str(max(1, int(launch.term_seconds) - 2))]
        if knows(_OPTIONS, _QUIET_OPTION, version) and not has_any(spec.args, {_QUIET_OPTION}):
            argv += [f"--{_QUIET_OPTION}", QUIET_PATHS]
        if spec.adapters:
            if not has_any(spec.args, {"enable-lora"}):
                argv.append("--enable-lora")
            argv.append("--lora-modules")
            argv += [f"{adapter.name}={adapter.source}" for adapter in spec.adapters]
        argv += options(spec.args, falsehood="negate")
        content = None
        if launch.key is not None and launch.contained:
            # Options by file, never by argv or environment; JSON is YAML.
            argv += ["--config", str(launch.key_file)]
            content = json.dumps({"api-key": launch.key})
        return Command(tuple(argv), frozen_map(_environment(launch)), content)

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        pooling = spec.args.get("runner") == "pooling" or spec.args.get("task") in {"embed", "embedding"}
        return embedding_probe(launch_model) if pooling else completion_probe(launch_model)


def _environment(launch: Launch) -> dict[str, str]:
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Whatever the node's environment says: its endpoints reset caches, pause, and reach into workers.
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_HOST_IP": launch.host if launch.host not in {"0.0.0.0", "::"} else "127.0.0.1",
        **launch.visible_gpus,
    }
    if len(launch.ports) > 3:
        env["VLLM_PORT"] = str(launch.ports[1])
        env["VLLM_DP_MASTER_PORT"] = str(launch.ports[-2])
        env["MASTER_PORT"] = str(launch.ports[-1])
    if launch.source_is_path:
        env["HF_HUB_OFFLINE"] = "1"
    if not launch.gpus:
        env["VLLM_CPU_KVCACHE_SPACE"] = "1"
    if launch.key is not None and not launch.contained:
        # The only place but argv where vLLM looks for it; /proc shows it to this user and root alone.
        env["VLLM_API_KEY"] = launch.key
    return env
