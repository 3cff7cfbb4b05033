"""vLLM: `vllm serve`, on GPUs or, for tests and small models, on the CPU."""

from dataclasses import dataclass

from nebula_agent.engines.base import Command, Launch, Probe, completion_probe, embedding_probe
from nebula_agent.engines.metrics import MetricNames
from nebula_agent.engines.options import has_any, options
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import DeploymentSpec

#: 0.11 and later first, then the names before it (control_plane, 3).
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
)
#: From this version on SIGTERM can let requests finish first; before, the option is unknown and ends the start.
_SHUTDOWN_TIMEOUT_SINCE = (0, 18)
_QUIET_OPTION = "disable-access-log-for-endpoints"
#: The option is in 0.32, where it was tried; earlier versions were not looked at.
_QUIET_SINCE = (0, 32)
#: Asked every second by the agent: in the log they would bury what the engine says.
QUIET_PATHS = "/health,/metrics,/v1/models"
_PARALLEL = frozenset({"tensor-parallel-size", "tp", "pipeline-parallel-size", "pp", "data-parallel-size", "dp"})


@dataclass(frozen=True, slots=True)
class Vllm:
    kind: str = "vllm"
    program_names: tuple[str, ...] = ("vllm",)
    package: str | None = "vllm"
    #: One serves; vLLM counts up from VLLM_PORT for its own processes.
    ports_needed: int = 8
    health_path: str = "/health"
    names: MetricNames = VLLM_NAMES

    def command(self, launch: Launch) -> Command:
        spec = launch.spec
        argv = [
            *(str(launch.program.path), "serve", spec.source),
            *("--host", launch.host, "--port", str(launch.port), "--served-model-name", launch.model),
        ]
        if len(launch.gpus) > 1 and not has_any(spec.args, _PARALLEL):
            argv += ["--tensor-parallel-size", str(len(launch.gpus))]
        if not launch.gpus and not has_any(spec.args, {"enforce-eager", "compilation-config", "optimization-level"}):
            # Compiling for the CPU takes minutes and needs a compiler.
            argv.append("--enforce-eager")
        version = launch.program.version
        if not has_any(spec.args, {"shutdown-timeout"}) and (version is None or version >= _SHUTDOWN_TIMEOUT_SINCE):
            # Less than what the agent waits before it kills the group.
            argv += ["--shutdown-timeout", str(max(1, int(launch.term_seconds) - 2))]
        if version is not None and version >= _QUIET_SINCE and not has_any(spec.args, {_QUIET_OPTION}):
            argv += [f"--{_QUIET_OPTION}", QUIET_PATHS]
        if spec.adapters:
            argv += ["--enable-lora", "--lora-modules"]
            argv += [f"{adapter.name}={adapter.source}" for adapter in spec.adapters]
        argv += options(spec.args, falsehood="negate")
        env = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "CUDA_VISIBLE_DEVICES": ",".join(launch.gpus),
            "VLLM_HOST_IP": launch.host if launch.host not in {"0.0.0.0", "::"} else "127.0.0.1",
        }
        if len(launch.ports) > 1:
            env["VLLM_PORT"] = str(launch.ports[1])
            env["MASTER_PORT"] = str(launch.ports[-1])
        if launch.source_is_path:
            env["HF_HUB_OFFLINE"] = "1"
        if not launch.gpus:
            env["VLLM_CPU_KVCACHE_SPACE"] = "1"
        if launch.key is not None:
            # The only place but argv where vLLM looks for it; /proc shows it to this user and root alone.
            env["VLLM_API_KEY"] = launch.key
        return Command(tuple(argv), frozen_map(env))

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        pooling = spec.args.get("runner") == "pooling" or spec.args.get("task") in {"embed", "embedding"}
        return embedding_probe(launch_model) if pooling else completion_probe(launch_model)
