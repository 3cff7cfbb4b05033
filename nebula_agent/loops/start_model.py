"""The model of one replica's next start, and its adapters: which they are, whether they are here, and where.

What a source names elsewhere (a hub, an object store) is fetched to this node's cache before the engine starts, and the
engine is given a path and no network to a hub. A path is used where it is, after a look at whether its files are whole.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from nebula_agent.adapters.programs import why_model_damaged
from nebula_agent.decisions.lifecycle import ImageState
from nebula_agent.loops.context import Context
from nebula_agent.loops.model_keeper import Fetch, ModelNotHere
from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.model_source import ModelSource, SourceKind, sources_of
from nebula_core.records.placement import Placement

#: Headers of all files of a large model, over a slow network.
LOOK_THROUGH_SECONDS = 120.0


def kept_ids(spec: DeploymentSpec) -> frozenset[str]:
    """Entries of the cache that a replica of this spec needs."""
    return frozenset(source.id for source in sources_of(spec) if source.kept)


def expected_paths(spec: DeploymentSpec, context: Context) -> dict[str, str]:
    """Where each source will be when the engine starts; those an engine fetches itself are left out."""
    keeper = context.models
    paths = {}
    for source in sources_of(spec):
        if source.kind is SourceKind.PATH:
            paths[source.text] = source.name
        elif keeper is not None:
            paths[source.text] = str(keeper.path(source))
    return paths


def local_spec(spec: DeploymentSpec, paths: Mapping[str, str]) -> DeploymentSpec:
    """The spec as the engine is told it: sources by their paths on this node."""
    adapters = tuple(
        adapter.model_copy(update={"source": paths.get(adapter.source, adapter.source)}) for adapter in spec.adapters
    )
    return spec.model_copy(update={"source": paths.get(spec.source, spec.source), "adapters": adapters})


class NextModel:
    """Owned by the replica's owner; `call` wakes it."""

    def __init__(self, replica: str, context: Context, call: Callable[[], None]) -> None:
        self._replica = replica
        self._context = context
        self._call = call
        self._fetches: dict[str, Fetch] = {}
        #: What the latest start was made of: it may still run while the placement asks for another.
        self._taken: frozenset[str] = frozenset()

    def pins(self, placement: Placement) -> frozenset[str]:
        """Entries that this replica holds on to."""
        return self._taken | kept_ids(placement.spec)

    def state(self, placement: Placement) -> ImageState | None:
        """What there is to wait for; None: nothing."""
        missing = self._missing(placement)
        if not missing:
            return None
        known = [self._fetches.get(source.id) for source in missing]
        failed = next((fetch for fetch in known if fetch is not None and fetch.failed is not None), None)
        words = [
            f"{source.text}: not on this node" if fetch is None else fetch.words
            for source, fetch in zip(missing, known, strict=True)
        ]
        return ImageState(
            "; ".join(words), None if failed is None else f"{failed.source.text}: {failed.failed}", what="model"
        )

    def begin(self, placement: Placement) -> None:
        """Sees to it that all that is missing is fetched, and nothing else for this replica."""
        keeper = self._context.models
        missing = {source.id: source for source in self._missing(placement)}
        for name, fetch in tuple(self._fetches.items()):
            if keeper is not None and name not in missing:
                keeper.let_go(self._fetches.pop(name), self._replica)
            elif fetch.here and keeper is not None:
                # It came and went again.
                keeper.let_go(self._fetches.pop(name), self._replica)
        for name, source in missing.items():
            if keeper is not None and name not in self._fetches:
                self._fetches[name] = keeper.want(source, self._replica, self._call)

    def let_go(self) -> None:
        """It is not waited for any more, or the start has been made."""
        keeper = self._context.models
        fetches, self._fetches = self._fetches, {}
        for fetch in fetches.values():
            if keeper is not None:
                keeper.let_go(fetch, self._replica)

    async def take(self, placement: Placement) -> Mapping[str, str]:
        """Paths by source, each looked through. Raises ModelNotHere with what of the model is wrong."""
        keeper = self._context.models
        paths: dict[str, str] = {}
        for source in sources_of(placement.spec):
            if source.kind is SourceKind.PATH:
                damaged = await self._context.mounts.look(LOOK_THROUGH_SECONDS, why_model_damaged, Path(source.name))
                if damaged is not None:
                    raise ModelNotHere(f"model {source.text}: {damaged}", hint="Copy it there again")
                paths[source.text] = source.name
            elif keeper is not None:
                paths[source.text] = str(await keeper.take(source))
        self._taken = kept_ids(placement.spec)
        return paths

    def _missing(self, placement: Placement) -> list[ModelSource]:
        keeper = self._context.models
        if keeper is None:
            return []
        return [source for source in sources_of(placement.spec) if source.kept and keeper.entry(source) is None]
