"""Programs and weights on this node's disk: where engines are, which version, without running them, and how much they load."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from nebula_agent.decisions.model_files import why_no_safetensors
from nebula_agent.engines.base import Engine, Program
from nebula_agent.engines.simulated import Simulated

#: A header longer than this is not read to its end; only its length is judged then.
_MOST_HEADER_BYTES = 32 * 1024**2
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
_VERSION = re.compile(r"^Version:\s*(\d+)\.(\d+)(?:\.(\d+))?", re.MULTILINE)


def why_model_damaged(path: Path) -> str | None:
    """By its index and the headers of its safetensors, without reading the weights; None: nothing is seen to be wrong."""
    if not path.exists():
        return "it is not on this node"
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    index = path / "model.safetensors.index.json"
    try:
        if path.is_dir() and index.exists():
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
            missing = sorted(shards - {file.name for file in files})
            if missing:
                return f"{missing[0]} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{index.name} cannot be read: {type(error).__name__}"
    for file in files:
        try:
            with file.open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                header = handle.read(8)
                length = min(int.from_bytes(header, "little"), _MOST_HEADER_BYTES)
                reason = why_no_safetensors(header + handle.read(length), size)
        except OSError as error:
            return f"{file.name} cannot be read: {error.strerror}"
        if reason is not None:
            return f"{file.name} {reason}"
    return None


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


def weights_bytes(source: Path) -> int | None:
    """How much an engine has to read; None where there is nothing of the kind. Blocking: call it in a thread."""
    try:
        files = [source] if source.is_file() else [path for path in source.rglob("*") if path.suffix in _WEIGHTS]
        return sum(path.stat().st_size for path in files) or None
    except OSError:
        return None
