"""Whether a replica may be started here and now: refused as it is ordered, or blocked until something else lets go."""

import os
from collections.abc import Callable

from nebula_agent.adapters.disk_threads import DiskSilent
from nebula_agent.adapters.programs import why_missing
from nebula_agent.decisions.gpu_ledger import stranger
from nebula_agent.decisions.policy import why_refused as why_policy_refuses
from nebula_agent.engines.registry import ENGINES
from nebula_agent.loops.context import Context
from nebula_agent.loops.how_run import catalog_entry, runtime_name
from nebula_agent.loops.start_model import expected_paths, local_spec
from nebula_core.records.image_ref import parse_image
from nebula_core.records.model_source import SourceKind, sources_of
from nebula_core.records.placement import Placement

#: So long a model's path may take to be looked at; longer, and the replica waits, with these words.
MODEL_SECONDS = 3.0


def why_refused(placement: Placement, context: Context) -> str | None:
    """Why it cannot be started as it is ordered, with what to change; None: it can."""
    spec = placement.spec
    if spec.engine == "external":
        return why_policy_refuses(context.policy, placement)
    engine = ENGINES.get(spec.engine)
    if engine is None:
        return f"this agent cannot run engine {spec.engine}"
    runtime = runtime_name(placement, context)
    if runtime not in context.runtimes:
        return f"this node has no runtime {runtime} (has {', '.join(context.runtimes)})"
    reason = why_policy_refuses(context.policy, placement) or engine.why_unfit(
        local_spec(spec, expected_paths(spec, context)), len(placement.gpus)
    )
    if reason is not None:
        return reason
    if context.sealing_key is not None and not engine.takes_key and spec.engine not in context.policy.keyless_engines:
        return (
            f"{spec.engine} takes no key: whoever reaches its port may use it; "
            "add it to `keyless_engines` of this node's policy if only the proxies can"
        )
    if runtime == "sidecar":
        if not engine.program_names and spec.engine not in context.settings.sidecar.programs:
            return f"{spec.engine} has no usual program: name it in `sidecar.programs` of the agent's settings"
        return None
    if runtime == "docker":
        reason = _why_image_refused(placement, context)
        if reason is not None:
            return reason
    elif spec.engine not in context.programs:
        return why_missing(engine, context.settings.engines.of(spec.engine).program)
    for source in sources_of(spec):
        if source.kept and context.models is None and source.kind is not SourceKind.HUB:
            return f"this node keeps no models, which {source.text} needs; set model_cache.enabled of its agent"
    return None


async def why_no_model(placement: Placement, context: Context) -> tuple[str | None, str | None]:
    """(why refused, why blocked) for models that are named by a path: the first is for good, the other until its disk answers."""
    for source in sources_of(placement.spec):
        if source.kind is not SourceKind.PATH:
            continue
        try:
            there = await context.mounts.look(MODEL_SECONDS, os.path.exists, source.name)
        except DiskSilent:
            return None, (
                f"the model {source.text} cannot be looked at: its disk has not answered for {MODEL_SECONDS:g} s; "
                "look at the mount and its server (`findmnt -T`), or stop the replica"
            )
        if not there:
            words = f"the model {source.text} is not on this node; copy it there, or restrict the placement by labels"
            return words, None
    return None, None


def why_blocked(placement: Placement, context: Context, holder_of: Callable[[str, str], str | None]) -> str | None:
    """Which of its GPUs is not free, and who has it; `holder_of(gpu, replica)` names another replica of this node."""
    containers = context.containers
    if containers is not None and runtime_name(placement, context) == "docker":
        if containers.unavailable is not None:
            return f"waits for Docker: {containers.unavailable.message}"
        if not containers.sorted:
            return "waits for Docker: its containers are being looked at"
    reading = context.gpus
    inventory = {gpu.id: gpu for gpu in reading.inventory}
    samples = {sample.gpu: sample for sample in reading.samples}
    for gpu in placement.gpus:
        known = inventory.get(gpu)
        if known is None:
            return f"gpu {gpu} is not on this node, or its driver has not shown it yet"
        holder = holder_of(gpu, placement.replica)
        if holder is not None:
            return f"gpu {known.index} is still held by {holder}"
        sample = samples.get(gpu)
        if sample is not None and sample.fault is not None:
            return f"gpu {known.index}: {sample.fault}"
        if sample is not None and placement.spec.gpu_memory_bytes is None:
            held = stranger(sample)
            if held is not None:
                return f"gpu {known.index}: {held}"
    return None


def _why_image_refused(placement: Placement, context: Context) -> str | None:
    """Why its image may not run on this node."""
    entry = catalog_entry(placement, context)
    if isinstance(entry, str):
        return entry
    keeper = context.images
    if entry is None or keeper is None:
        return None
    named = parse_image(entry.image)
    if named is None:
        return f"{entry.image!r} is no name of an image"
    return None if keeper.may_be_allowed(named) else keeper.why_refused(named)
