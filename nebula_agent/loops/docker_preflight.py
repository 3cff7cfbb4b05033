"""What `nebula-agent check` looks at of Docker: whether it answers, keeps engines over its own restart, gives GPUs, has room."""

from pathlib import Path

from nebula_agent.adapters.catalog_file import read_catalog
from nebula_agent.adapters.docker_engine import DockerEngine, EngineFacts, default_address
from nebula_agent.loops.finding import Finding
from nebula_agent.settings import AgentSettings
from nebula_core.errors import NebulaError

#: An engine's image has 5 to 20 GiB.
LEAST_IMAGE_DISK_BYTES = 40 * 1024**3
#: Below, some fields of a container are not known to the daemon.
_OLDEST_API = (1, 41)


async def docker_findings(settings: AgentSettings) -> list[Finding]:
    """In the order in which they would stop a start; one line where Docker is not used."""
    docker = settings.docker
    address = docker.host or default_address()
    there = _is_there(address)
    if docker.enabled is False:
        return [Finding("docker", "ok", "switched off: engines are processes")]
    if docker.enabled is None and not there:
        return [Finding("docker", "warn", f"none at {address}: engines are processes", "Install Docker for containers")]
    engine = DockerEngine(address, call_seconds=docker.call_seconds)
    try:
        facts = await engine.facts()
    except NebulaError as error:
        return [Finding("docker", "FAIL", error.message, error.hint)]
    finally:
        engine.close()
    return [_version(facts, address), _live_restore(facts), _gpus(facts, settings), _disk(facts), _catalog(settings)]


def _is_there(address: str) -> bool:
    return not address.startswith("unix://") or Path(address.removeprefix("unix://")).exists()


def _version(facts: EngineFacts, address: str) -> Finding:
    text = f"{facts.version} (API {facts.api_version}) at {address}, {facts.storage_driver}, cgroup v{facts.cgroup_version}"
    if tuple(int(part) for part in facts.api_version.split(".") if part.isdecimal()) < _OLDEST_API:
        oldest = ".".join(map(str, _OLDEST_API))
        return Finding("docker", "FAIL", text, f"Update Docker: API {oldest} or newer is needed")
    return Finding("docker", "ok", text)


def _live_restore(facts: EngineFacts) -> Finding:
    if facts.live_restore:
        return Finding("docker live-restore", "ok", "engines outlive a restart of Docker")
    hint = 'Set "live-restore": true in /etc/docker/daemon.json, then: systemctl reload docker'
    return Finding("docker live-restore", "warn", "off: a restart of Docker ends every engine", hint)


def _gpus(facts: EngineFacts, settings: AgentSettings) -> Finding:
    if facts.gpu_mode is not None:
        how = "the nvidia runtime" if facts.gpu_mode == "nvidia" else "CDI"
        return Finding("docker gpus", "ok", f"given by {how}")
    if settings.gpus != "auto":
        return Finding("docker gpus", "ok", f"none needed (gpus = {settings.gpus!r})")
    hint = "Install the NVIDIA container toolkit, then: nvidia-ctk runtime configure --runtime=docker"
    return Finding("docker gpus", "warn", "Docker has neither the nvidia runtime nor CDI", hint)


def _disk(facts: EngineFacts) -> Finding:
    free = facts.free_bytes
    if free is None:
        return Finding("docker disk", "warn", f"{facts.root_dir} is not of this machine: its room is unknown")
    text = f"{facts.root_dir}, {free / 1024**3:.0f} GiB free"
    if free < LEAST_IMAGE_DISK_BYTES:
        return Finding("docker disk", "warn", text, "Make room: docker system df; an engine's image has 5 to 20 GiB")
    return Finding("docker disk", "ok", text)


def _catalog(settings: AgentSettings) -> Finding:
    try:
        entries = read_catalog(settings.docker.catalog_file)
    except NebulaError as error:
        return Finding("docker catalog", "FAIL", error.message, error.hint)
    return Finding(
        "docker catalog", "ok", f"{len(entries)} images ({settings.docker.catalog_file or 'those of Nebula'})"
    )
