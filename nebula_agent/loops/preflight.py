"""What `nebula-agent check` looks at before the agent is started: each with a verdict and, if bad, what to do."""

import asyncio
import os
import shutil
from dataclasses import dataclass
from typing import Literal

from nebula_agent.adapters.nvml import Nvml
from nebula_agent.adapters.policy_file import read_policy
from nebula_agent.adapters.ports import first_free
from nebula_agent.adapters.programs import find_program, why_missing
from nebula_agent.decisions.ports import blocks
from nebula_agent.engines.registry import ENGINES
from nebula_agent.settings import AgentSettings
from nebula_core.errors import NebulaError
from nebula_core.runtime.clock import SystemClock
from nebula_core.security.envelope import VerifyKeys
from nebula_core.store.connection import connect

LEAST_DISK_BYTES = 5 * 1024**3
_DRIVER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    verdict: Literal["ok", "warn", "FAIL"]
    detail: str
    hint: str | None = None


async def preflight(settings: AgentSettings) -> list[Finding]:
    """Everything, in the order in which it would stop a start."""
    findings = [
        Finding("node", "ok", f"{settings.node} at {settings.address}"),
        _data_dir(settings),
        _keys(settings),
        _sealing(settings),
        _policy(settings),
        await _store(settings),
        await _ports(settings),
        await _gpus(settings),
    ]
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
    return Finding("policy", "ok", str(settings.policy_file))


async def _store(settings: AgentSettings) -> Finding:
    try:
        async with await connect(settings.store) as store:
            await store.check()
    except NebulaError as error:
        return Finding("store", "FAIL", error.message, error.hint)
    return Finding("store", "ok", settings.store.shown_url)


async def _ports(settings: AgentSettings) -> Finding:
    low, high = settings.port_range
    try:
        await asyncio.to_thread(first_free, settings.engine_host, blocks(settings.port_range, 1, (), None))
    except NebulaError as error:
        return Finding("port_range", "FAIL", error.message, error.hint)
    return Finding("port_range", "ok", f"{low}-{high} on {settings.engine_host}")


async def _gpus(settings: AgentSettings) -> Finding:
    if settings.gpus != "auto":
        return Finding("gpus", "ok", settings.gpus)
    nvml = Nvml(SystemClock())
    try:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DRIVER_SECONDS
        reading = await nvml.read({})
        while not (reading.inventory or reading.problems) and loop.time() < deadline:
            reading = await nvml.read({})
    finally:
        nvml.close()
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
