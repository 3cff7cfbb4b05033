"""One start of an engine: its ports, its key, its command and environment, handed to the runtime."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nebula_agent.adapters.disk_threads import DiskSilent
from nebula_agent.adapters.external_runtime import ExternalRefused
from nebula_agent.adapters.kernel_memory import oom_kills
from nebula_agent.adapters.programs import weights_bytes
from nebula_agent.adapters.runtime import Room, Started, StartImage
from nebula_agent.decisions import containers as labels
from nebula_agent.decisions.external import read_address
from nebula_agent.decisions.launch_digest import launch_digest
from nebula_agent.engines.base import Launch
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.context import Context
from nebula_agent.loops.engine_key import EngineKey
from nebula_agent.loops.how_run import program_of, runtime_name
from nebula_agent.loops.start_model import local_spec
from nebula_core.errors import NebulaError
from nebula_core.records.placement import Placement

#: What of the agent's own environment an engine gets.
PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE"),
        *("SSL_CERT_DIR", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT"),
        *("HF_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy"),
        *("https_proxy", "no_proxy"),
        # Whoever started the whole finds its leftovers by it.
        "NEBULA_UP",
    }
)

WEIGHTS_SECONDS = 10.0
KEY_SECONDS = 10.0


class EngineGone(NebulaError):
    """The program of an engine was there when the agent began, and is not now."""

    code = "engine_gone"


async def start_engine(
    placement: Placement, key: EngineKey, image: StartImage | None, context: Context, paths: Mapping[str, str]
) -> Started:
    """Starts what the placement says; `paths` of its sources on this node. Raises OSError, or NebulaError with the reason."""
    spec, settings, files = local_spec(placement.spec, paths), context.settings, context.files
    if spec.engine == "external":
        return await _take_up(placement, key, context)
    engine = ENGINES[spec.engine]
    inventory = {gpu.id: gpu for gpu in context.gpus.inventory}
    program = program_of(placement, context)
    if program is None:
        raise EngineGone(
            f"{spec.engine} is not on this node any more", hint="Install it, or place the replica elsewhere"
        )
    block = await context.ports.take(placement.replica, engine.ports_needed)
    runtime = context.runtimes[runtime_name(placement, context)]
    launch = Launch(
        replica=placement.replica,
        model=placement.deployment,
        spec=spec,
        program=program,
        gpus=placement.gpus,
        host=settings.engine_host,
        ports=block,
        key=await key.make(),
        key_file=files.key_file(placement.replica),
        term_seconds=settings.term_seconds,
        simulated_preset=settings.simulated.preset,
        vendor=next((inventory[gpu].vendor for gpu in placement.gpus if gpu in inventory), "nvidia"),
        gpu_indexes=tuple(inventory[gpu].index for gpu in placement.gpus if gpu in inventory),
    )
    engine_epoch = secrets.token_hex(6)
    if image is not None:
        image = replace(image, env={**image.env, **settings.engines.of(spec.engine).env})
    room = Room(
        replica=placement.replica,
        engine_epoch=engine_epoch,
        log_file=files.log_file(placement.replica),
        environment=environment(spec.engine, context, os.environ),
        image=image,
        labels=_labels(placement, launch, engine_epoch, str(files.log_file(placement.replica))),
    )
    weights = await _weights_bytes(Path(spec.source), context) if launch.source_is_path else None
    kills = oom_kills()
    seen = runtime.inside(launch)
    started = await runtime.start(seen, engine.command(seen), room)
    key.seal(started.engine_epoch)
    return started.model_copy(update={"oom_kills": kills, "weights_bytes": weights})


async def _weights_bytes(source: Path, context: Context) -> int | None:
    try:
        return await context.mounts.look(WEIGHTS_SECONDS, weights_bytes, source)
    except DiskSilent:
        return None  # only its start deadline depends on it


async def _take_up(placement: Placement, key: EngineKey, context: Context) -> Started:
    """Of an engine that somebody else runs its address is taken up."""
    runtime = context.external
    if placement.address is None:
        raise ExternalRefused(f"{placement.replica} stands for no address", hint="Name one per replica in `source`")
    address = read_address(placement.address)
    room = Room(placement.replica, secrets.token_hex(6), context.files.log_file(placement.replica))
    started = await runtime.take_up(address, room, placement.deployment, placement.spec.args)
    await key.keep(await context.mounts.look(KEY_SECONDS, runtime.key_for, address))
    key.seal(started.engine_epoch)
    return started


def _labels(placement: Placement, launch: Launch, engine_epoch: str, log_file: str) -> dict[str, str]:
    """All that is needed to find the start again, or to rebuild what was desired of it."""
    return {
        labels.NODE: placement.node,
        labels.DEPLOYMENT: placement.deployment,
        labels.REPLICA: placement.replica,
        labels.GENERATION: str(placement.generation),
        labels.EPOCH: engine_epoch,
        labels.DIGEST: launch_digest(placement),
        labels.ENGINE: placement.spec.engine,
        labels.SPEC: placement.spec.to_json(),
        labels.HOST: launch.host,
        labels.PORT: str(launch.port),
        labels.GPUS: ",".join(launch.gpus),
        labels.LOG_FILE: log_file,
    }


def environment(kind: str, context: Context, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of an engine of this kind, before the engine's own: of the agent's only what is allowed."""
    allowed = PASSED_ON | set(context.policy.environment)
    passed = {name: value for name, value in env.items() if name in allowed}
    # A service may have none, and engines keep their caches there.
    passed.setdefault("HOME", str(context.files.directory))
    return passed | context.settings.engines.of(kind).env
