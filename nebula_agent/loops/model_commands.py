"""What a node is asked of its models by command: fetch one ahead of need, evict some, or all that nothing needs."""

import asyncio
from collections.abc import Mapping

from nebula_agent.loops.commands import Handler, Outcome, Tell, follow
from nebula_agent.loops.model_keeper import ModelKeeper, ModelNotHere
from nebula_core.records.command import Command, CommandArgument
from nebula_core.records.model_source import ModelSource, read_source

GIB = 1024**3


def model_handlers(models: ModelKeeper) -> Mapping[str, Handler]:
    """By kind of command."""

    async def prefetch(command: Command, tell: Tell) -> Outcome:
        wanted = _source(command)
        refused = models.why_refused(wanted)
        if refused is not None:
            raise ModelNotHere(refused, hint="What a node may fetch is said by its own policy file")
        if not wanted.kept:
            raise ModelNotHere(f"{wanted.text} is a path: it is used where it is", hint="nfs+copy: copies one")
        changed = asyncio.Event()
        who = f"command:{command.id}"
        one = models.want(wanted, who, changed.set)
        try:
            await follow(one, changed, tell)
            if one.failed is not None:
                raise ModelNotHere(one.failed)
            entry = models.entry(wanted)
            size = 0 if entry is None else entry.size_bytes
            facts: dict[str, CommandArgument] = {
                "source": wanted.text,
                "id": wanted.id,
                "size_bytes": size,
                "revision": None if entry is None else entry.revision,
                "digest": None if entry is None else entry.digest,
            }
            return Outcome(f"{wanted.text} is here ({size / GIB:.1f} GiB)", facts)
        finally:
            models.let_go(one, who)

    async def evict(command: Command, tell: Tell) -> Outcome:
        said = command.arguments.get("model")
        tell("looking for models that nothing needs", None)
        ids = None
        if said is not None:
            await models.look()
            found = models.find(str(said))
            if not found:
                raise ModelNotHere(f"there is no model {str(said)[:200]} on this node", hint="Look at `cache list`")
            ids = [entry.id for entry in found]
        gone = await models.evict(ids)
        if ids is not None and len(gone) < len(ids):
            kept = ", ".join(entry.source for entry in models.entries if entry.id in ids)
            raise ModelNotHere(f"not evicted: {kept}", hint="It came into use meanwhile, or another process has it")
        freed = sum(entry.size_bytes for entry in gone)
        names = ", ".join(entry.source for entry in gone)
        words = f"{len(gone)} evicted, {freed / GIB:.1f} GiB freed" + (f": {names[:400]}" if names else "")
        return Outcome(words, {"evicted": len(gone), "freed_bytes": freed})

    return {"cache.prefetch": prefetch, "cache.evict": evict}


def _source(command: Command) -> ModelSource:
    text, engine = command.arguments.get("source"), command.arguments.get("engine") or "vllm"
    found = read_source(str(text), engine=str(engine))
    if isinstance(found, str):
        raise ModelNotHere(found)
    return found
