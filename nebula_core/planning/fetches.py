"""What the nodes have to bring to their disks before the replicas that a plan starts can start there: models and images.

Told from what the nodes report of their disks. A model is known by its id, which is made of all that its source means
for the kind of engine; an image by its name, or the digest in it. Which image `auto` means is said by a node's own
catalog, so it is taken from a replica of the same engine on GPUs of the same maker, and left open where none runs.
What a node does not report is not known to be missing either: such a fetch is not `certain`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nebula_core.records.deployment import DeploymentSpec
from nebula_core.records.image_ref import ImageRef, is_it, parse_image
from nebula_core.records.model_source import ModelSource, SourceKind, sources_of
from nebula_core.records.node import Node
from nebula_core.records.placement import Placement, Wanted
from nebula_core.records.plan import Plan, PlannedFetch
from nebula_core.records.report import ModelFetch, NodeImage, NodeReport
from nebula_core.records.snapshot import ClusterSnapshot


def planned_fetches(view: ClusterSnapshot, plan: Plan) -> tuple[PlannedFetch, ...]:
    """Each once per node, in the order of the plan."""
    found: dict[tuple[str, str, str], PlannedFetch] = {}
    disks = _Disks(view)
    for change in plan.changes:
        placed = change.placement
        if placed is None or placed.wanted is not Wanted.RUN or _runs_so(view, placed):
            continue
        for fetch in disks.missing(placed):
            key = (fetch.node, fetch.kind, fetch.name or placed.spec.engine)
            former = found.get(key, fetch)
            found[key] = former.model_copy(update={"replicas": (*former.replicas, placed.replica)})
    return tuple(found.values())


def _runs_so(view: ClusterSnapshot, placed: Placement) -> bool:
    former = view.placements.get(placed.replica)
    return former is not None and (former.node, former.spec) == (placed.node, placed.spec)


@dataclass(slots=True)
class _Disks:
    """The disks of all nodes; what was looked for once is kept, since a plan asks the same of each of its placements."""

    view: ClusterSnapshot
    _sizes: dict[str, int | None] = field(default_factory=dict)
    _images: dict[tuple[str, str, str | None], str | None] = field(default_factory=dict)

    def missing(self, placed: Placement) -> Iterator[PlannedFetch]:
        image = self._image(placed)
        if image is not None:
            yield image
        for source in sources_of(placed.spec):
            if source.kind is not SourceKind.PATH:
                model = self._model(placed.node, source)
                if model is not None:
                    yield model

    # --- models

    def _model(self, node: str, source: ModelSource) -> PlannedFetch | None:
        report = self._report(node)
        kept = () if report is None else report.models or ()
        mine = next((one for one in kept if one.id == source.id), None)
        if mine is not None and mine.complete:
            return None
        coming = next((one for one in _fetching(report) if one.id == source.id), None)
        here = coming.done_bytes if coming is not None else mine.size_bytes if mine is not None else 0
        certain = coming is not None or mine is not None or _names_all_models(report)
        return PlannedFetch(
            node=node,
            kind="model",
            name=source.text,
            origin=source.kind,
            size_bytes=self._model_size(source.id),
            here_bytes=here if certain else None,
            under_way=coming is not None,
            certain=certain,
        )

    def _model_size(self, entry: str) -> int | None:
        if entry not in self._sizes:
            self._sizes[entry] = model_size(self.view, entry)
        return self._sizes[entry]

    # --- images

    def _image(self, placed: Placement) -> PlannedFetch | None:
        node = self.view.nodes.get(placed.node)
        if node is None or not _in_a_container(placed.spec, node):
            return None
        text = placed.spec.image if placed.spec.image != "auto" else self._usual_image(placed, node)
        wanted = None if text is None else parse_image(text)
        report = self._report(placed.node)
        if wanted is None:
            return PlannedFetch(node=placed.node, kind="image", name=None, certain=False)
        images = None if report is None else report.images
        if any(_is_image(wanted, image) for image in images or ()):
            return None
        pulls = () if report is None else report.pulls
        under_way = any(not pull.failed and pull.image == wanted.short for pull in pulls)
        return PlannedFetch(
            node=placed.node,
            kind="image",
            name=wanted.short,
            origin=wanted.registry,
            size_bytes=self._image_size(wanted),
            under_way=under_way,
            certain=under_way or images is not None,
        )

    def _usual_image(self, placed: Placement, node: Node) -> str | None:
        """What `auto` became for another replica: of the same deployment, else of any with the same engine and source."""
        vendor = _vendor(node, placed)
        key = (placed.deployment, placed.spec.source, vendor)
        if key not in self._images:
            self._images[key] = self._seen_image(placed, vendor)
        return self._images[key]

    def _seen_image(self, placed: Placement, vendor: str | None) -> str | None:
        seen: str | None = None
        for replica, status in self.view.replicas().items():
            other = self.view.placements.get(replica)
            if status.image is None or other is None or other.spec.image != "auto":
                continue
            if (other.spec.engine, other.spec.source) != (placed.spec.engine, placed.spec.source):
                continue
            node = self.view.nodes.get(other.node)
            if node is not None and _vendor(node, other) == vendor:
                seen = status.image
                if other.deployment == placed.deployment:
                    break
        return seen

    def _image_size(self, wanted: ImageRef) -> int | None:
        sizes = (
            image.size_bytes
            for received in self.view.reports.values()
            for image in received.report.images or ()
            if image.size_bytes is not None and _is_image(wanted, image)
        )
        return max(sizes, default=None)

    def _report(self, node: str) -> NodeReport | None:
        received = self.view.reports.get(node)
        return None if received is None else received.report


def model_size(view: ClusterSnapshot, entry: str) -> int | None:
    """Bytes of the model with this id, as a node says that has it whole or is fetching it; None: none does."""
    return max(_said_sizes(view, entry), default=None)


def _said_sizes(view: ClusterSnapshot, entry: str) -> Iterator[int]:
    for received in view.reports.values():
        for model in received.report.models or ():
            if model.id == entry and model.complete:
                yield model.size_bytes
        for fetch in _fetching(received.report):
            if fetch.id == entry and fetch.total_bytes:
                yield fetch.total_bytes


def _fetching(report: NodeReport | None) -> Iterable[ModelFetch]:
    return () if report is None else (one for one in report.fetches if not one.failed)


def _names_all_models(report: NodeReport | None) -> bool:
    """A node that keeps none leaves its engines to fetch for themselves; a long list is reported in part."""
    if report is None or report.models is None:
        return False
    return report.model_cache is None or report.model_cache.models <= len(report.models)


def _is_image(wanted: ImageRef, image: NodeImage) -> bool:
    return is_it(wanted, image.id, image.tags, image.digests)


def _in_a_container(spec: DeploymentSpec, node: Node) -> bool:
    """As far as it is known here: an engine that the node has installed may run as a process or from the catalog's image."""
    if spec.engine == "external":
        return False
    if spec.runtime != "auto":
        return spec.runtime == "docker"
    if "docker" not in node.runtimes or "sidecar" in node.runtimes:
        return False
    return spec.image != "auto" or (spec.engine != "simulated" and spec.engine not in node.engines)


def _vendor(node: Node, placed: Placement) -> str | None:
    return next((gpu.vendor for gpu in node.gpus if gpu.id in placed.gpus and not gpu.simulated), None)
