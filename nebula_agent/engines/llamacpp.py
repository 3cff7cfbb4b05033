"""llama.cpp's `llama-server`: small, quick to start, without histograms (first-token times come from the proxy)."""

from dataclasses import dataclass

from nebula_agent.engines.base import Command, Launch, Probe, completion_probe, embedding_probe
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
    names: MetricNames = LLAMACPP_NAMES

    def command(self, launch: Launch) -> Command:
        spec = launch.spec
        local = launch.source_is_path or spec.source.endswith(".gguf")
        argv = [str(launch.program.path), "-m" if local else "-hf", spec.source]
        argv += ["--host", launch.host, "--port", str(launch.port), "--alias", launch.model, "--metrics", "--slots"]
        if not has_any(spec.args, {"jinja", "no-jinja"}):
            argv.append("--jinja")
        if launch.gpus and not has_any(spec.args, {"gpu-layers", "n-gpu-layers", "ngl"}):
            argv += ["--n-gpu-layers", "999"]
        argv += options(spec.args, falsehood="omit")
        content = None
        if launch.key is not None:
            argv += ["--api-key-file", str(launch.key_file)]
            content = f"{launch.key}\n"
        return Command(tuple(argv), frozen_map({"CUDA_VISIBLE_DEVICES": ",".join(launch.gpus)}), content)

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        embedding = spec.args.get("embeddings") is True or spec.args.get("embedding") is True
        return embedding_probe(launch_model) if embedding else completion_probe(launch_model)
