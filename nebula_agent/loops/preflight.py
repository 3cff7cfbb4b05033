"""What `nebula-agent check` looks at before the agent is started: each with a verdict and, if bad, what to do."""

import asyncio
import os
import shutil
import time

from nebula_agent.adapters.accelerators import open_gpus
from nebula_agent.adapters.kernel_log import open_kernel_log
from nebula_agent.adapters.object_store import S3Access, check_access
from nebula_agent.adapters.policy_file import read_policy
from nebula_agent.adapters.ports import first_free
from nebula_agent.adapters.programs import find_program, why_missing
from nebula_agent.decisions.clock_skew import clock_problem
from nebula_agent.decisions.ports import blocks
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.clock_watch import read_clocks
from nebula_agent.loops.docker_preflight import docker_findings
from nebula_agent.loops.finding import Finding
from nebula_agent.settings import AgentSettings, S3Settings
from nebula_core.errors import NebulaError
from nebula_core.runtime.clock import SystemClock
from nebula_core.security.envelope import VerifyKeys
from nebula_core.store.connection import connect

LEAST_DISK_BYTES = 5 * 1024**3
LEAST_SHM_BYTES = 1024**3
_SHM = "/dev/shm"  # noqa: S108 - looked at, not written
_DRIVER_SECONDS = 5.0


async def preflight(settings: AgentSettings) -> list[Finding]:
    """Everything, in the order in which it would stop a start."""
    findings = [
        Finding("node", "ok", f"{settings.node} at {settings.address}"),
        _data_dir(settings),
        _keys(settings),
        _sealing(settings),
        _policy(settings),
        await _store(settings),
        await _clock(settings),
        _shared_memory(),
        _kernel_log(settings),
        await _ports(settings),
        await _gpus(settings),
    ]
    findings += await docker_findings(settings)
    findings += object_store_findings(settings)
    return findings + [_engine(settings, kind) for kind in ENGINES]


def _data_dir(settings: AgentSettings) -> Finding:
    folder = settings.data_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding("data_dir", "FAIL", f"{folder} cannot be written", "Set data_dir to a folder of this user")
    free = shutil.disk_usage(existing).free
    text = f"{folder}, {free / 1024**3:.0f} GiB free"
    if free < LEAST_DISK_BYTES:
        return Finding("data_dir", "warn", text, "Make room: engines write logs and caches")
    return Finding("data_dir", "ok", text)


def _keys(settings: AgentSettings) -> Finding:
    if settings.verify_keys is None:
        return Finding("verify_keys", "FAIL", "not set", "Copy verify.keys, made by `nebula-proxy init`, to this node")
    try:
        keys = VerifyKeys.load(settings.verify_keys)
    except NebulaError as error:
        return Finding("verify_keys", "FAIL", error.message, error.hint)
    return Finding("verify_keys", "ok", f"{len(keys.key_ids)} key(s): {', '.join(sorted(keys.key_ids))}")


def _sealing(settings: AgentSettings) -> Finding:
    if settings.sealing_public_key is None:
        return Finding("sealing_public_key", "warn", "not set: engines run without keys", "Set it to sealing.pub")
    return Finding("sealing_public_key", "ok", settings.sealing_public_key)


def _policy(settings: AgentSettings) -> Finding:
    try:
        read_policy(settings.policy_file)
    except NebulaError as error:
        return Finding("policy", "FAIL", error.message, error.hint)
    if settings.policy_file is None:
        return Finding("policy", "warn", "none: any source and engine that is signed is run", "Write a policy_file")
    owner = settings.policy_file.stat().st_uid
    if owner != 0:
        hint = f"Run: chown root {settings.policy_file} && chmod 644 {settings.policy_file}"
        return Finding(
            "policy", "warn", f"{settings.policy_file} is not root's: the agent itself could change it", hint
        )
    return Finding("policy", "ok", f"{settings.policy_file}, root's")


def object_store_findings(settings: AgentSettings) -> list[Finding]:
    """Nothing where neither the settings nor the policy speak of one."""
    said = settings.model_cache.s3
    try:
        sources = read_policy(settings.policy_file).sources or ()
    except NebulaError:
        sources = ()  # what is wrong with it stands in the policy's own row
    allowed = [each for each in sources if each.startswith("s3:")]
    if said == S3Settings() and not allowed:
        return []
    try:
        check_access(S3Access(**said.model_dump()))
    except NebulaError as error:
        return [Finding("s3", "FAIL", error.message, error.hint)]
    where = said.endpoint or "the endpoint of the environment, else AWS"
    if not allowed:
        return [
            Finding("s3", "warn", f"{where}: no source of it is allowed", "List s3:bucket/* in the policy's `sources`")
        ]
    return [Finding("s3", "ok", f"{where}: {', '.join(allowed)}")]


async def _store(settings: AgentSettings) -> Finding:
    try:
        async with await connect(settings.store) as store:
            await store.check()
    except NebulaError as error:
        return Finding("store", "FAIL", error.message, error.hint)
    return Finding("store", "ok", settings.store.shown_url)


async def _clock(settings: AgentSettings) -> Finding:
    try:
        async with await connect(settings.store) as store:
            reading = await read_clocks(store, time.time(), time.monotonic())
    except NebulaError as error:
        # What is wrong with it stands in the store's own row.
        return Finding("clock", "warn", "not compared: the store does not answer", error.hint)
    ahead = reading.ahead_seconds
    if ahead is None:
        return Finding("clock", "warn", "not compared: the store answers too slowly", "Look at the network to it")
    problem = clock_problem(ahead)
    if problem is None:
        return Finding("clock", "ok", f"{abs(ahead):.1f} s from the store's")
    return Finding("clock", "FAIL" if problem.severity == "crit" else "warn", problem.message, problem.hint)


def _shared_memory() -> Finding:
    """Engines on several GPUs exchange through it; a small one kills them in the middle of a start."""
    try:
        total = shutil.disk_usage(_SHM).total
    except OSError as error:
        return Finding("shared_memory", "warn", f"{_SHM}: {error.strerror}", "Mount a tmpfs there")
    text = f"{_SHM} has {total / 1024**3:.0f} GiB"
    if total < LEAST_SHM_BYTES:
        return Finding("shared_memory", "warn", text, "Mount it larger: mount -o remount,size=16G /dev/shm")
    return Finding("shared_memory", "ok", text)


def _kernel_log(settings: AgentSettings) -> Finding:
    if settings.simulated_gpus is not None or settings.gpus == "none":
        return Finding("kernel_log", "ok", "not needed without GPUs")
    kernel = open_kernel_log(settings.kernel_log)
    kernel.close()
    if kernel.unreadable is not None:
        hint = "Add this user to the group systemd-journal, else Xid errors are not seen"
        return Finding("kernel_log", "warn", kernel.unreadable, hint)
    return Finding("kernel_log", "ok", str(settings.kernel_log))


async def _ports(settings: AgentSettings) -> Finding:
    low, high = settings.port_range
    try:
        await asyncio.to_thread(first_free, settings.engine_host, blocks(settings.port_range, 1, (), None))
    except NebulaError as error:
        return Finding("port_range", "FAIL", error.message, error.hint)
    return Finding("port_range", "ok", f"{low}-{high} on {settings.engine_host}")


async def _gpus(settings: AgentSettings) -> Finding:
    if settings.simulated_gpus is not None or settings.gpus == "none":
        return Finding("gpus", "ok", settings.gpus)
    gpus = open_gpus(settings.gpus, SystemClock())
    try:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DRIVER_SECONDS
        reading = await gpus.read({})
        while not (reading.inventory or reading.problems) and loop.time() < deadline:
            reading = await gpus.read({})
    finally:
        await gpus.aclose()
    for problem in reading.problems:
        return Finding("gpus", "warn" if problem.severity == "info" else "FAIL", problem.message, problem.hint)
    names = ", ".join(gpu.name for gpu in reading.inventory) or "none"
    return Finding("gpus", "ok", f"{names} (driver {reading.driver_version or 'unknown'})")


def _engine(settings: AgentSettings, kind: str) -> Finding:
    engine, said = ENGINES[kind], settings.engines.of(kind).program
    program = find_program(engine, said)
    if program is None:
        return Finding(f"engine {kind}", "FAIL" if said is not None else "warn", why_missing(engine, said))
    return Finding(f"engine {kind}", "ok", f"{program.path} {program.version_text or ''}".rstrip())
