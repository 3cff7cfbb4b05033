"""The simulated engine: a program of this package that behaves like vLLM and says that it is not."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nebula_agent.engines.base import (
    Command,
    EngineInfo,
    Launch,
    Probe,
    Program,
    completion_probe,
    embedding_probe,
    version_info,
)
from nebula_agent.engines.metrics import MetricNames
from nebula_agent.engines.options import has_any, options
from nebula_agent.engines.vllm import QUIET_PATHS, VLLM_NAMES
from nebula_core.records.base import frozen_map
from nebula_core.records.deployment import DeploymentSpec


@dataclass(frozen=True, slots=True)
class Simulated:
    kind: str = "simulated"
    program_names: tuple[str, ...] = ()
    package: str | None = None
    ports_needed: int = 1
    health_path: str = "/health"
    info_path: str = "/version"
    takes_key: bool = True
    names: MetricNames = VLLM_NAMES

    @staticmethod
    def own_program() -> Program:
        """The Python that runs this agent."""
        return Program(Path(sys.executable))

    def why_unfit(self, spec: DeploymentSpec, gpus: int) -> str | None:
        del spec, gpus
        return None

    def read_info(self, answer: Mapping[str, object]) -> EngineInfo:
        return version_info(answer)

    def command(self, launch: Launch) -> Command:
        args = launch.spec.args
        argv = [
            *(str(launch.program.path), "-m", "nebula_agent.simulator"),
            *("--host", launch.host, "--port", str(launch.port), "--served-model-name", launch.model),
        ]
        if not has_any(args, {"preset"}):
            argv += ["--preset", launch.simulated_preset]
        if not has_any(args, {"shutdown-timeout"}):
            argv += ["--shutdown-timeout", str(max(1, int(launch.term_seconds) - 2))]
        if not has_any(args, {"disable-access-log-for-endpoints", "access-log"}):
            argv += ["--disable-access-log-for-endpoints", QUIET_PATHS]
        if launch.spec.adapters:
            argv += ["--lora-modules", *(f"{adapter.name}={adapter.source}" for adapter in launch.spec.adapters)]
        argv += options(args, falsehood="negate")
        content = None
        if launch.key is not None:
            argv += ["--api-key-file", str(launch.key_file)]
            content = f"{launch.key}\n"
        return Command(tuple(argv), frozen_map(), content)

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        return embedding_probe(launch_model) if spec.args.get("runner") == "pooling" else completion_probe(launch_model)
