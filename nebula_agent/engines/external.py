"""An engine that somebody else runs: nothing to start, and which kind it is is found out where it answers."""

from collections.abc import Mapping
from dataclasses import dataclass

from nebula_agent.engines.base import Command, EngineInfo, Launch, Probe, completion_probe, embedding_probe
from nebula_agent.engines.metrics import MetricNames
from nebula_core.records.deployment import DeploymentSpec

#: Nothing is known of its figures, so nothing of them is missed.
NO_NAMES = MetricNames()


@dataclass(frozen=True, slots=True)
class Other:
    """One that speaks OpenAI's API and is of no kind known here: its list of models is its health."""

    kind: str = "other"
    program_names: tuple[str, ...] = ()
    package: str | None = None
    ports_needed: int = 0
    health_path: str = "/v1/models"
    info_path: str = "/version"
    takes_key: bool = True
    names: MetricNames = NO_NAMES

    def why_unfit(self, spec: DeploymentSpec, gpus: int) -> str | None:
        del spec, gpus
        return None

    def read_info(self, answer: Mapping[str, object]) -> EngineInfo:
        version = answer.get("version")
        return EngineInfo(version if isinstance(version, str) and len(version) < 64 else None)

    def command(self, launch: Launch) -> Command:
        raise TypeError(f"{launch.replica} is external: nobody starts it here")

    def probe(self, launch_model: str, spec: DeploymentSpec) -> Probe:
        return embedding_probe(launch_model) if spec.args.get("embeddings") is True else completion_probe(launch_model)
