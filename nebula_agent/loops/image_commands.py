"""What a node is asked of its images by command: pull one, prune those that nothing needs."""

import asyncio
from collections.abc import Mapping

from nebula_agent.loops.commands import Handler, Outcome, Tell, follow
from nebula_agent.loops.image_keeper import ImageKeeper, ImageNotPulled
from nebula_core.records.command import Command
from nebula_core.records.image_ref import ImageRef, parse_image

GIB = 1024**3


def image_handlers(images: ImageKeeper) -> Mapping[str, Handler]:
    """By kind of command."""

    async def pull(command: Command, tell: Tell) -> Outcome:
        wanted = _image(command)
        refused = None if images.may_be_allowed(wanted) else images.why_refused(wanted)
        if refused is not None:
            raise ImageNotPulled(refused, hint="What a node may run is said by its own policy file")
        changed = asyncio.Event()
        who = f"command:{command.id}"
        one = images.want(wanted, who, changed.set)
        try:
            await follow(one, changed, tell)
            if one.failed is not None:
                raise ImageNotPulled(one.failed)
            digest = one.digest or ""
            return Outcome(f"{wanted.short} is here ({digest[:19]})", {"image": wanted.text, "digest": digest})
        finally:
            images.let_go(one, who)

    async def prune(_command: Command, tell: Tell) -> Outcome:
        tell("looking for images that nothing needs", None)
        gone, freed = await images.prune()
        names = ", ".join(image.tags[0] if image.tags else image.id[:19] for image in gone)
        words = f"{len(gone)} removed, {freed / GIB:.1f} GiB freed" + (f": {names[:400]}" if names else "")
        return Outcome(words, {"removed": len(gone), "freed_bytes": freed})

    return {"image.pull": pull, "image.prune": prune}


def _image(command: Command) -> ImageRef:
    said = command.arguments.get("image")
    found = parse_image(said) if isinstance(said, str) else None
    if found is None:
        raise ImageNotPulled(f"{str(said)[:200]!r} is no name of an image", hint="Write registry/repository:tag")
    return found
