"""SGLang: `python -m sglang.launch_server` or `sglang serve`, always with its metrics on."""

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
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import DeploymentSpec


def _names(*names: str) -> tuple[str, ...]:
    """The prefix was `sglang_` for some versions (sglang#12618) and is `sglang:` again."""
    return tuple(f"sglang{mark}{name}" for name in names for mark in (":", "_"))


SGLANG_NAMES = MetricNames(
    running=_names("num_running_reqs"),
    waiting=_names("num_queue_reqs"),
    waiting_too=_names("num_grammar_queue_reqs"),
    kv_cache_usage=_names("token_usage"),
    kv_cache_tokens=_names("max_total_num_tokens"),
    prompt_tokens=_names("prompt_tokens_total"),
    generation_tokens=_names("generation_tokens_total"),
    cached_prompt_tokens=_names("cached_tokens_total"),
    hit_ratio=_names("cache_hit_rate"),
    preemptions=_names("num_retracted_requests_total"),
    finished=_names("num_requests_total"),
    ttft=_names("time_to_first_token_seconds"),
    itl=_names("inter_token_latency_seconds"),
    late=True,
)
_PARALLEL = frozenset({"tp", "tp-size", "tensor-parallel-size", "pp-size", "dp", "dp-size", "data-parallel-size"})


@dataclass(frozen=True, slots=True)
class Sglang:
    kind: str = "sglang"
    program_names: tuple[str, ...] = ("sglang",)
    package: str | None = "sglang"
    ports_needed: int = 8
    health_path: str = "/health"
    info_path: str = "/server_info"
    takes_key: bool = True
    names: MetricNames = SGLANG_NAMES

    def why_unfit(self, spec: DeploymentSpec, gpus: int) -> str | None:
        del spec, gpus
        return None

    def read_info(self, answer: Mapping[str, object]) -> EngineInfo:
        return version_info(answer)

    def command(self, launch: Launch) -> Command:
        spec = launch.spec
        path = launch.program.path
        is_python = path.name.startswith("python")
        argv = [str(path), "-m", "sglang.launch_server"] if is_python else [str(path), "serve"]
        argv += ["--model-path", spec.source, "--host", launch.host, "--port", str(launch.port)]
        argv += ["--served-model-name", launch.model, "--enable-metrics"]
        if len(launch.gpus) > 1 and not has_any(spec.args, _PARALLEL):
            argv += ["--tp-size", str(len(launch.gpus))]
        if len(launch.ports) > 1 and not has_any(spec.args, {"nccl-port"}):
            argv += ["--nccl-port", str(launch.ports[1])]
        if spec.adapters:
            argv.append("--lora-paths")
            argv += [f"{adapter.name}={adapter.source}" for adapter in spec.adapters]
        argv += options(spec.args, falsehood="omit")
        content = None
        if launch.key is not None:
            # The key is only taken as an option; a settings file of mode 0600 keeps it out of argv. JSON is YAML.
            argv += ["--config", str(launch.key_file)]
            content = json.dumps({"api-key": launch.key}) + "\n"
        env = dict(launch.visible_gpus)
        if launch.source_is_path:
            env["HF_HUB_OFFLINE"] = "1"
        return Command(tuple(argv), frozen_map(env), content)

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        return (
            embedding_probe(launch_model) if spec.args.get("is-embedding") is True else completion_probe(launch_model)
        )
