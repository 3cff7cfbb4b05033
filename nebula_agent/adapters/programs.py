"""Where the programs of engines are on this node, and which version, without running them (vLLM takes 14 s to say)."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from nebula_agent.engines.base import Engine, Program
from nebula_agent.engines.simulated import Simulated

_VERSION = re.compile(r"^Version:\s*(\d+)\.(\d+)(?:\.(\d+))?", re.MULTILINE)


def find_program(engine: Engine, said: Path | None, env: Mapping[str, str] | None = None) -> Program | None:
    """The engine's program: as the settings say, else `NEBULA_<KIND>`, else on PATH; None when there is none."""
    if isinstance(engine, Simulated):
        return engine.own_program()
    environment = os.environ if env is None else env
    named = said or environment.get(f"NEBULA_{engine.kind.upper()}")
    candidates = (str(named),) if named else engine.program_names
    for candidate in candidates:
        found = shutil.which(candidate, path=environment.get("PATH"))
        if found is not None:
            return Program(Path(found), version_beside(Path(found), engine.package))
    return None


def why_missing(engine: Engine, said: Path | None) -> str:
    """The reason an operator reads, with what to do."""
    if said is not None:
        return f"this node has no {engine.kind}: {said} is no program; correct engines.{engine.kind}.program"
    names = " or ".join(engine.program_names)
    return f"this node has no {engine.kind}: no {names} on PATH; install it or set engines.{engine.kind}.program"


def version_beside(program: Path, package: str | None) -> tuple[int, ...] | None:
    """From the metadata of the package in the environment the program belongs to."""
    if package is None:
        return None
    root = program.resolve().parent.parent if not (program.parent / "activate").exists() else program.parent.parent
    for metadata in sorted(root.glob(f"lib/python3*/site-packages/{package}-*.dist-info/METADATA")):
        try:
            found = _VERSION.search(metadata.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found is not None:
            return tuple(int(part) for part in found.groups() if part is not None)
    return None
