"""llama.cpp's `llama-server`: small, quick to start, without histograms (first-token times come from the proxy)."""

from collections.abc import Mapping
from dataclasses import dataclass

from nebula_agent.engines.base import Command, EngineInfo, Launch, Probe, completion_probe, embedding_probe, is_path
from nebula_agent.engines.metrics import MetricNames
from nebula_agent.engines.options import has_any, options
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import DeploymentSpec

#: No cache fill (its names are gone, control_plane 3) and no histograms: nothing of these is missed.
LLAMACPP_NAMES = MetricNames(
    running=("llamacpp:requests_processing",),
    waiting=("llamacpp:requests_deferred",),
    kv_cache_usage=(),
    prompt_tokens=("llamacpp:prompt_tokens_total",),
    generation_tokens=("llamacpp:tokens_predicted_total",),
    cached_prompt_tokens=("llamacpp:prompt_tokens_cached_total",),
    cached_are_extra=True,
    steps=("llamacpp:n_decode_total",),
)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    kind: str = "llamacpp"
    program_names: tuple[str, ...] = ("llama-server",)
    package: str | None = None
    ports_needed: int = 1
    health_path: str = "/health"
    info_path: str = "/props"
    takes_key: bool = True
    names: MetricNames = LLAMACPP_NAMES

    def why_unfit(self, spec: DeploymentSpec, gpus: int) -> str | None:
        del gpus
        if any(not is_path(adapter.source) for adapter in spec.adapters):
            return "llama-server loads an adapter from a GGUF file of this node: give `source` as a path"
        if len(spec.adapters) > 1:
            # It scales all it has loaded into every answer, and knows none of them as a model of its own.
            return "llama-server merges adapters into the model: give one adapter, or one deployment for each"
        return None

    def read_info(self, answer: Mapping[str, object]) -> EngineInfo:
        build, slots = answer.get("build_info"), answer.get("total_slots")
        return EngineInfo(
            build if isinstance(build, str) and len(build) < 64 else None, slots if isinstance(slots, int) else None
        )

    def command(self, launch: Launch) -> Command:
        spec = launch.spec
        local = launch.source_is_path or spec.source.endswith(".gguf")
        argv = [str(launch.program.path), "-m" if local else "-hf", spec.source]
        argv += ["--host", launch.host, "--port", str(launch.port), "--alias", launch.model, "--metrics", "--slots"]
        if not has_any(spec.args, {"jinja", "no-jinja"}):
            argv.append("--jinja")
        if launch.gpus and not has_any(spec.args, {"gpu-layers", "n-gpu-layers", "ngl"}):
            argv += ["--n-gpu-layers", "999"]
        for adapter in spec.adapters:
            argv += ["--lora", adapter.source]
        argv += options(spec.args, falsehood="omit")
        content = None
        if launch.key is not None:
            argv += ["--api-key-file", str(launch.key_file)]
            content = f"{launch.key}\n"
        return Command(tuple(argv), frozen_map(launch.visible_gpus), content)

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        embedding = spec.args.get("embeddings") is True or spec.args.get("embedding") is True
        return embedding_probe(launch_model) if embedding else completion_probe(launch_model)
