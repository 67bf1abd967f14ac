"""The flow ``rechunk``: group an image's files into layers by content, each distinct one written once a farm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.flows.base import Context, FileRef, Model, WorkDirectory, name_of_work, work_directory
from layerfarm.jobs.flows.images import image_stage, source_of
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.stages import Planned
from layerfarm.jobs.flows.transforming import (
    LayerWork,
    TransformedImage,
    TransformState,
    begin,
    images_with,
    importing,
    keeping,
    kept_layers,
    layer_stage,
    target_of,
    transform_flow,
    work_of,
    written,
)
from layerfarm.jobs.flows.transforms import ComponentRule, RechunkRequest
from layerfarm.jobs.image import PackedLayer, Resolved, pack_layer
from layerfarm.jobs.image.pack import choose_compression
from layerfarm.jobs.relayer.analysis import AnalysisOptions, Analyzed, analyze, keep_analysis, kept_analysis
from layerfarm.jobs.relayer.components import Rule
from layerfarm.jobs.relayer.configs import rechunked_config
from layerfarm.jobs.relayer.equivalence import Tolerance
from layerfarm.jobs.relayer.planner.plan import Divider
from layerfarm.jobs.relayer.rechunk import LayerToBe, layers_to_be, read_plan, recipe_of, write_layer
from layerfarm.jobs.relayer.spool import Difference, Spool, read_image
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import read_result, write_result

_NOTES = "layers"
_LEVELS = {Compression.GZIP: 6, Compression.ZSTD: 9, Compression.ZSTD_CHUNKED: 9}
"""Default levels, slower than those of a build: an image is rechunked once, and every pull has fewer bytes."""


class Task(Model):
    """One image of the set, its kept layers, and the compression of its new ones."""

    image: Descriptor
    keep: int
    compression: Compression


class RechunkState(TransformState):
    """State of a rechunk."""

    budget: int
    plan: str | None
    level: int | None
    prefetch: list[str]
    epoch: int | None
    components: list[ComponentRule]
    tasks: FileRef
    """:class:`Task` by the digest of the image."""
    laid: FileRef | None = None
    """:class:`Laid` by the digest of the image."""
    packed: FileRef | None = None
    """The written layers, by :func:`_name_of_layer`."""


def _begin(ctx: Context, request: RechunkRequest) -> RechunkState:
    images, fields = begin(ctx, request)
    if request.plan is not None:
        read_plan(Layout.open(fields["target"].store), request.plan)
    tasks = {}
    for image in images.images:
        keep = kept_layers(ctx, image, request.keep, request.base)
        compression = choose_compression(request.compress, image, request.level, request.prefetch)
        tasks[image.descriptor.digest] = Task(image=image.descriptor, keep=keep, compression=compression)
    return RechunkState(
        budget=request.budget,
        plan=request.plan,
        level=request.level,
        prefetch=request.prefetch,
        epoch=request.source_date_epoch,
        components=request.components,
        tasks=work_directory(ctx, fields["target"].store).keep("tasks", tasks, Task),
        **fields,
    )


def _images(ctx: Context, state: RechunkState) -> Iterator[tuple[Resolved, Task]]:
    return images_with(ctx, state, state.tasks, Task)


def _kept(ctx: Context, state: RechunkState) -> Import:
    kept = [layer for image, task in _images(ctx, state) for layer in image.manifest.layers[: task.keep]]
    return importing(ctx, state, kept)


# --- read: one image a unit ----------------------------------------------------------------------


class Listed(Model):
    """One layer above the kept ones."""

    name: str
    digest: str
    """Digest of its content."""
    packed: PackedLayer | None = None
    """The blob, if it is already in the store."""
    recipe: FileRef | None = None
    """Otherwise the recipe, and the spool that it refers to."""
    spool: FileRef | None = None
    bytes: int = 0
    """Bytes of content."""


class Laid(Model):
    """Result of reading one image."""

    listing: FileRef
    """:class:`Listed` by number, from 0 for the lowest."""
    warnings: list[str] = []


def analysis_options(keep: int, epoch: int | None, components: Sequence[ComponentRule]) -> AnalysisOptions:
    """Parameters of an analysis, from the fields of a request."""
    return AnalysisOptions(keep, epoch, tuple(Rule(rule.name, tuple(rule.paths)) for rule in components))


def _run_read(ctx: Context, state: RechunkState, image: Resolved) -> Laid:
    """Find the layers of one image. It is not read if its analysis exists and all its layers are in the store."""
    source, target = source_of(ctx, state), target_of(ctx, state)
    work = work_of(ctx, state)
    work.create()
    divider = None if state.plan is None else Divider(read_plan(target, state.plan))
    digest = image.descriptor.digest
    task = work.kept(state.tasks, Task)[digest]
    options = analysis_options(task.keep, state.epoch, state.components)
    analysis = kept_analysis(source, digest, options) or kept_analysis(target, digest, options)
    if analysis is not None:
        layers = [_known(target, layer, state, task) for layer in layers_to_be(analysis, divider, state.budget)]
        if all(layer.packed is not None for layer in layers):
            return _laid(work, digest, layers, analysis.warnings)
    content, spool_file = spooled(ctx, work, source, image, task.keep)
    with Spool(work.open(spool_file)) as spool:
        analyzed = analyze(digest, content, spool, options)
    if not keep_analysis(source, analyzed.analysis, options):
        keep_analysis(target, analyzed.analysis, options)
    layers = []
    for layer in layers_to_be(analyzed.analysis, divider, state.budget):
        known = _known(target, layer, state, task)
        if known.packed is None:
            sizes = {part.key: part.size for part in analyzed.analysis.parts}
            recipe = _recipe(work, layer, content, analyzed, state.epoch)
            nbytes = sum(sizes[key] for key in layer.keys)
            known = known.model_copy(update={"recipe": recipe, "spool": spool_file, "bytes": nbytes})
        layers.append(known)
    return _laid(work, digest, layers, analyzed.analysis.warnings)


def _known(target: Layout, layer: LayerToBe, state: RechunkState, task: Task) -> Listed:
    """Return the layer, with its blob if that was written earlier and is still in the store."""
    content = read_result(target, _NOTES, _name_of_layer(layer.digest, _codec(state, task.compression)))
    packed = None
    if content is not None:
        with suppress(ValueError):
            packed = PackedLayer.model_validate_json(content)
    if packed is not None and not target.claim(packed.descriptor):
        packed = None
    return Listed(name=layer.name, digest=layer.digest, packed=packed)


def _recipe(
    work: WorkDirectory, layer: LayerToBe, content: Difference, analyzed: Analyzed, epoch: int | None
) -> FileRef:
    def write(path: Path) -> None:
        with path.open("wb") as out:
            out.writelines(recipe_of(layer, content, analyzed, epoch))

    return work.publish(f"recipe-{_short(analyzed.analysis.image)}-{layer.digest[:16]}", write)


def _laid(work: WorkDirectory, digest: str, layers: list[Listed], warnings: Sequence[str]) -> Laid:
    numbered = {str(number): layer for number, layer in enumerate(layers)}
    listing = work.keep(f"listing-{_short(digest)}", numbered, Listed)
    return Laid(listing=listing, warnings=list(warnings))


def spooled(
    ctx: Context, work: WorkDirectory, source: Layout, image: Resolved, keep: int
) -> tuple[Difference, FileRef]:
    """Read an image into a spool in the work directory."""
    content: Difference

    def fill(path: Path) -> None:
        nonlocal content
        content = read_image(source, image, keep, path, ctx.observer.advanced)

    spool = work.publish(f"spool-{_short(image.descriptor.digest)}", fill, digest=False)
    return content, spool


def _short(digest: str) -> str:
    return digest.partition(":")[2][:32]


# --- pack: each layer a unit, shared by all jobs of the farm ----------------------------------------


class _Pack(LayerWork):
    digest: str
    recipe: FileRef
    spool: FileRef
    compression: Compression
    level: int | None
    prefetch: list[str]

    @property
    def name(self) -> str:
        return _name_of_layer(self.digest, _codec(self, self.compression))


def _codec(options: RechunkState | _Pack, compression: Compression, threads: int = 1) -> Codec:
    level = _LEVELS.get(compression) if options.level is None else options.level
    return Codec(compression, level=level, threads=threads, prefetch=tuple(options.prefetch))


def _name_of_layer(digest: str, codec: Codec) -> str:
    """Return the name of a layer with this content and compression, in any image."""
    return name_of_work("chunk", codec_id(codec), digest)


def _plan_pack(ctx: Context, state: RechunkState) -> Planned[_Pack]:
    work = work_of(ctx, state)
    tasks = work.kept(state.tasks, Task)
    units: dict[str, tuple[_Pack, int]] = {}
    for digest, laid in work.kept(state.laid, Laid).items():
        compression = tasks[digest].compression
        for layer in _listed(work, laid):
            if layer.recipe is not None and layer.spool is not None:
                unit = _Pack(
                    target=state.target.store,
                    digest=layer.digest,
                    recipe=layer.recipe,
                    spool=layer.spool,
                    compression=compression,
                    level=state.level,
                    prefetch=state.prefetch,
                )
                units.setdefault(unit.name, (unit, layer.bytes))
    return units


def _listed(work: WorkDirectory, laid: Laid) -> list[Listed]:
    """Return the layers of one image of the set, lowest first."""
    return list(work.kept(laid.listing, Listed).values())


def _run_pack(ctx: Context, params: _Pack) -> PackedLayer:
    target = ctx.store(params.target)
    work = work_directory(ctx, target.path)
    codec = _codec(params, params.compression, ctx.policy.threads)
    with work.open(params.recipe).open("rb") as recipe, Spool(work.open(params.spool)) as spool:
        packed = pack_layer(target, _reported(write_layer(recipe, spool), ctx), codec)
    write_result(target, _NOTES, params.name, packed.model_dump_json(by_alias=True).encode())
    return packed


def _reported(pieces: Iterator[bytes], ctx: Context) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        ctx.observer.advanced(len(piece))


def _equal_pack(ctx: Context, params: _Pack) -> str:
    return name_of_work(str(params.target), params.name)


# --- prove ---------------------------------------------------------------------------------------


def _make(ctx: Context, state: RechunkState, old: Resolved) -> TransformedImage:
    digest, work = old.descriptor.digest, work_of(ctx, state)
    task, laid = work.kept(state.tasks, Task)[digest], work.kept(state.laid, Laid)[digest]
    listed = _listed(work, laid)
    new = work.kept(state.packed, PackedLayer)
    codec = _codec(state, task.compression)
    packed = [layer.packed or new[_name_of_layer(layer.digest, codec)] for layer in listed]
    layers = [*old.manifest.layers[: task.keep], *(_in_order(each.descriptor) for each in packed)]
    if [layer.digest for layer in layers] == [layer.digest for layer in old.manifest.layers]:
        return TransformedImage(old, None, laid.warnings)
    names = [layer.name for layer in listed]
    config = rechunked_config(old.config, task.keep, names, [each.diff_id for each in packed], digest, state.epoch)
    parameters = {"budget": state.budget, "keep": task.keep, "plan": state.plan}
    allowed = Tolerance(clamp=state.epoch)
    warnings = [*laid.warnings, *(text for each in packed for text in each.warnings)]
    return written(ctx, state, old, layers, config, allowed, "rechunk", parameters, warnings)


def _in_order(layer: Descriptor) -> Descriptor:
    """Return the descriptor with its fields in the order of a new one, also if read from a note."""
    return Descriptor.model_validate(
        {
            "mediaType": layer.media_type,
            "digest": layer.digest,
            "size": layer.size,
            "annotations": dict(sorted((layer.annotations or {}).items())) or None,
        }
    )


RECHUNK = transform_flow(
    RechunkRequest,
    RechunkState,
    _begin,
    (
        import_stage(_kept),
        image_stage("read", RechunkState, Laid, _run_read, keeping("laid", Laid)),
        layer_stage("pack", _Pack, _plan_pack, _run_pack, "packed", _equal_pack),
    ),
    _make,
)
