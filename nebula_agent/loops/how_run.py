"""How a replica is run on this node: as a process or as a container, and of which image."""

from pathlib import Path

from nebula_agent.decisions.catalog import CatalogEntry, entry_for, hardware_of
from nebula_agent.decisions.runtime_choice import choose_runtime
from nebula_agent.engines.base import Program
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.context import Context
from nebula_core.records.placement import Placement


def runtime_name(placement: Placement, context: Context) -> str:
    spec = placement.spec
    program_set = context.settings.engines.of(spec.engine).program is not None
    return choose_runtime(
        spec,
        context.runtimes,
        program_set=program_set or spec.engine in context.programs_named,
        program_found=spec.engine in context.programs,
        has_image=isinstance(_entry(placement, context), CatalogEntry),
    )


def catalog_entry(placement: Placement, context: Context) -> CatalogEntry | str | None:
    """The image of a placement with what is known of it; why there is none; None: it is not run as a container."""
    return _entry(placement, context) if runtime_name(placement, context) == "docker" else None


def program_of(placement: Placement, context: Context) -> Program | None:
    """The engine's program as it will be started: of this node, or inside another container; None: there is none."""
    kind = placement.spec.engine
    if runtime_name(placement, context) == "sidecar":
        usual = ENGINES[kind].program_names
        named = context.settings.sidecar.programs.get(kind) or (Path(usual[0]) if usual else None)
        return None if named is None else Program(named)
    entry = catalog_entry(placement, context)
    if isinstance(entry, CatalogEntry):
        return Program(Path(entry.program), entry.version)
    return context.programs.get(kind)


def _entry(placement: Placement, context: Context) -> CatalogEntry | str | None:
    if context.images is None:
        return None
    inventory = {gpu.id: gpu for gpu in context.gpus.inventory}
    vendors = [inventory[gpu].vendor for gpu in placement.gpus if gpu in inventory and not inventory[gpu].simulated]
    return entry_for(context.images.catalog, placement.spec, hardware_of(vendors, gpus=len(vendors)))
