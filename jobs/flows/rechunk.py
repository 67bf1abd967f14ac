"""The flow ``rechunk``: an image in layers by content, each distinct one written once across the farm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.catalog.analysis import AnalysisOptions, Analyzed, analyze
from jobs.catalog.components import Rule
from jobs.catalog.difference import Allowed
from jobs.catalog.plan import Plan
from jobs.catalog.proof import prove
from jobs.catalog.reading import Difference, Spool, read_image
from jobs.catalog.rechunk import (
    LayerToBe,
    keep_analysis,
    kept_analysis,
    layers_to_be,
    read_plan,
    rechunked_config,
)
from jobs.catalog.recipes import recipe_of_deletions, recipe_of_directories, recipe_of_files, write_layer
from jobs.catalog.squash import check_range, layers_of_base, linux_only
from jobs.flows.base import Context, Equal, FileRef, Flow, Model, Stage, Unit, WorkDirectory, name_of_work
from jobs.flows.importing import Import, import_stage
from jobs.flows.layering import unit_of, work_directory
from jobs.flows.requests import ImageRef
from jobs.flows.transforming import (
    NewImage,
    TransformState,
    begin,
    clean,
    closing_stages,
    finish,
    image_set,
    source_of,
    target_of,
)
from jobs.flows.transforms import ComponentRule, RechunkRequest, TransformResult
from jobs.image import PackedLayer, Resolved, choose_compression, pack_layer, resolve, resolve_walk, write_image
from jobs.image.resolve import platform_text
from jobs.layer import Codec, Compression, codec_id
from jobs.store import Descriptor, Layout
from jobs.store.notes import read_note, write_note

_LAYERS = "layers"


class Task(Model):
    """One image of the set, and how it is to be laid out."""

    image: Descriptor
    keep: int
    compression: Compression


class Laid(Model):
    """What was found out about one image."""

    listing: FileRef
    """Its layers to be, lowest first."""
    warnings: list[str] = []


class RechunkState(TransformState):
    """What a rechunk knows between two stages."""

    budget: int
    plan: str | None
    level: int | None
    epoch: int | None
    components: list[ComponentRule]
    tasks: list[Task]
    laid: list[Laid] = []
    packed: dict[str, PackedLayer] = {}
    """The layers that were written, by the digest of what they hold."""


def _begin(ctx: Context, request: RechunkRequest) -> RechunkState:
    images, fields = begin(ctx, request)
    if request.plan is not None:
        read_plan(Layout.open(fields["target"].store), request.plan)
    tasks = []
    for image in images.images:
        keep = kept_layers(ctx, image, request.keep, request.base)
        compression = choose_compression(request.compress, image)
        Codec(compression, level=request.level)  # refuses a level that is none
        tasks.append(Task(image=image.descriptor, keep=keep, compression=compression))
    return RechunkState(
        budget=request.budget,
        plan=request.plan,
        level=request.level,
        epoch=request.source_date_epoch,
        components=request.components,
        tasks=tasks,
        **fields,
    )


def kept_layers(ctx: Context, image: Resolved, keep: int, base: ImageRef | None) -> int:
    """How many of the lowest layers are to stay.

    Raises:
        TransformError: the image has not so many, is not on that base, or not for Linux.
    """
    linux_only(image)
    if base is not None:
        base_store = Layout.open(ctx.policy.check_store(base.store))
        keep = max(keep, layers_of_base(image, resolve(base_store, base.tag, platform_text(image.config))))
    check_range(image, keep, None)
    return keep


def _kept(ctx: Context, state: RechunkState) -> Import:
    source = source_of(ctx, state)
    kept = [
        layer
        for image, task in zip(image_set(ctx, state).images, state.tasks, strict=True)
        for layer in image.manifest.layers[: task.keep]
    ]
    return Import(state.source, state.target.store, [layer for layer in kept if not layer.urls or source.has(layer)])


_LEVELS = {Compression.GZIP: 6, Compression.ZSTD: 9}
"""By default slower than the builds' own: who lays an image out anew does it once, for fewer bytes in every pull."""


def _codec(compression: Compression, level: int | None, threads: int = 1) -> Codec:
    return Codec(compression, level=_LEVELS.get(compression) if level is None else level, threads=threads)


# --- read: take the image apart, and say of each layer to be what goes into it ----------------------


def analysis_options(keep: int, epoch: int | None, components: Sequence[ComponentRule]) -> AnalysisOptions:
    """How an image is taken apart, from the fields of a request."""
    return AnalysisOptions(keep, epoch, tuple(Rule(rule.name, tuple(rule.paths)) for rule in components))


class _ReadUnit(Model):
    source: Path
    target: Path
    task: Task
    budget: int
    plan: str | None
    level: int | None
    epoch: int | None
    components: list[ComponentRule]

    def options(self) -> AnalysisOptions:
        return analysis_options(self.task.keep, self.epoch, self.components)


class Listed(Model):
    """One layer to be."""

    name: str
    digest: str
    """Of what it holds."""
    packed: PackedLayer | None = None
    """It is in the store already."""
    recipe: FileRef | None = None
    """What to write into it, else."""
    spool: FileRef | None = None
    bytes: int = 0
    """Of content."""


class _Listing(Model):
    layers: list[Listed]


def _plan_read(ctx: Context, state: RechunkState) -> list[Unit]:
    return [
        unit_of(
            _ReadUnit(
                source=state.source,
                target=state.target.store,
                task=task,
                budget=state.budget,
                plan=state.plan,
                level=state.level,
                epoch=state.epoch,
                components=state.components,
            ),
            nbytes=sum(layer.size for layer in image.manifest.layers),
        )
        for image, task in zip(image_set(ctx, state).images, state.tasks, strict=True)
    ]


def _run_read(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _ReadUnit.model_validate(unit.params)
    source = Layout.open(ctx.policy.check_store(params.source))
    target = Layout.open(ctx.policy.check_store(params.target))
    work = work_directory(ctx, target.path)
    work.create()
    plan = None if params.plan is None else read_plan(target, params.plan)
    options = params.options()
    analysis = kept_analysis(source, params.task.image.digest, options)
    if analysis is not None:
        layers = [_known(target, layer, params) for layer in layers_to_be(analysis, plan, params.budget)]
        if all(layer.packed is not None for layer in layers):
            return _laid(work, params, layers, list(analysis.warnings))
    image = resolve_walk(source, [params.task.image])
    return _read(ctx, source, target, work, image, plan, params)


def _read(
    ctx: Context,
    source: Layout,
    target: Layout,
    work: WorkDirectory,
    image: Resolved,
    plan: Plan | None,
    params: _ReadUnit,
) -> dict[str, Any]:
    options = params.options()
    content: Difference

    def fill(path: Path) -> None:
        nonlocal content
        content = read_image(source, image, params.task.keep, path, ctx.observer.advanced)

    spool_file = work.publish(f"spool-{_short(params)}", fill)
    with Spool(work.open(spool_file)) as spool:
        analyzed = analyze(image.descriptor.digest, content, spool, options)
    keep_analysis(source, analyzed.analysis, options)
    layers = []
    for layer in layers_to_be(analyzed.analysis, plan, params.budget):
        known = _known(target, layer, params)
        if known.packed is None:
            known = _described(work, known, layer, content, analyzed, params, spool_file)
        layers.append(known)
    return _laid(work, params, layers, list(analyzed.analysis.warnings))


def _known(target: Layout, layer: LayerToBe, params: _ReadUnit) -> Listed:
    """The layer, with its blob if that was written before and is still there."""
    content = read_note(target, _LAYERS, _name_of_layer(layer.digest, params.task.compression, params.level))
    packed = None
    if content is not None:
        with suppress(ValueError):
            packed = PackedLayer.model_validate_json(content)
    if packed is not None and not target.claim(packed.descriptor):
        packed = None
    return Listed(name=layer.name, digest=layer.digest, packed=packed)


def _described(
    work: WorkDirectory,
    known: Listed,
    layer: LayerToBe,
    content: Difference,
    analyzed: Analyzed,
    params: _ReadUnit,
    spool: FileRef,
) -> Listed:
    sizes = {part.key: part.size for part in analyzed.analysis.parts}

    def write(path: Path) -> None:
        with path.open("wb") as out:
            if layer.digest == analyzed.analysis.directories and not layer.keys:
                out.writelines(recipe_of_directories(content, params.epoch))
            elif not layer.keys:
                out.writelines(recipe_of_deletions(content))
            else:
                paths = (path for key in layer.keys for path in analyzed.members[key])
                out.writelines(recipe_of_files(paths, content, params.epoch))

    recipe = work.publish(f"recipe-{_short(params)}-{layer.digest[:16]}", write)
    return known.model_copy(update={"recipe": recipe, "spool": spool, "bytes": sum(sizes[key] for key in layer.keys)})


def _laid(work: WorkDirectory, params: _ReadUnit, layers: list[Listed], warnings: list[str]) -> dict[str, Any]:
    document = _Listing(layers=layers).model_dump_json(by_alias=True)

    def write(path: Path) -> None:
        path.write_text(document)

    listing = work.publish(f"listing-{_short(params)}", write)
    return Laid(listing=listing, warnings=warnings).model_dump(mode="json")


def _short(params: _ReadUnit) -> str:
    return params.task.image.digest.partition(":")[2][:32]


def _join_read(ctx: Context, state: RechunkState, results: list[dict[str, Any]]) -> RechunkState:
    return state.model_copy(update={"laid": [Laid.model_validate(result) for result in results]})


def _listed(ctx: Context, state: RechunkState, number: int) -> list[Listed]:
    """The layers of one image of the set, lowest first."""
    path = work_directory(ctx, state.target.store).open(state.laid[number].listing)
    return _Listing.model_validate_json(path.read_bytes()).layers


# --- pack: each layer a unit, shared by all jobs of the farm ----------------------------------------


class _PackUnit(Model):
    target: Path
    digest: str
    recipe: FileRef
    spool: FileRef
    compression: Compression
    level: int | None


def _wanted(ctx: Context, state: RechunkState) -> dict[str, _PackUnit]:
    """The layers to be written, each once, by the digest of what they hold."""
    units: dict[str, _PackUnit] = {}
    for number, task in enumerate(state.tasks):
        for layer in _listed(ctx, state, number):
            if layer.recipe is not None and layer.spool is not None:
                units.setdefault(
                    _name_of_layer(layer.digest, task.compression, state.level),
                    _PackUnit(
                        target=state.target.store,
                        digest=layer.digest,
                        recipe=layer.recipe,
                        spool=layer.spool,
                        compression=task.compression,
                        level=state.level,
                    ),
                )
    return units


def _plan_pack(ctx: Context, state: RechunkState) -> list[Unit]:
    sizes = {layer.digest: layer.bytes for number in range(len(state.tasks)) for layer in _listed(ctx, state, number)}
    return [unit_of(unit, nbytes=sizes[unit.digest]) for unit in _wanted(ctx, state).values()]


def _run_pack(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _PackUnit.model_validate(unit.params)
    target = Layout.open(ctx.policy.check_store(params.target))
    work = work_directory(ctx, target.path)
    codec = _codec(params.compression, params.level, ctx.policy.threads)
    with work.open(params.recipe).open("rb") as recipe, Spool(work.open(params.spool)) as spool:
        packed = pack_layer(target, _told(write_layer(recipe, spool), ctx), codec)
    document = packed.model_dump_json(by_alias=True).encode()
    write_note(target, _LAYERS, _name_of_layer(params.digest, params.compression, params.level), document)
    return packed.model_dump(mode="json", by_alias=True)


def _told(pieces: Iterator[bytes], ctx: Context) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        ctx.observer.advanced(len(piece))


def _name_of_layer(digest: str, compression: Compression, level: int | None) -> str:
    return name_of_work("chunk", codec_id(_codec(compression, level)), digest)


def _name_of_pack(ctx: Context, unit: Unit) -> str:
    params = _PackUnit.model_validate(unit.params)
    return name_of_work(str(params.target), _name_of_layer(params.digest, params.compression, params.level))


def _is_there(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _PackUnit.model_validate(unit.params)
    packed = PackedLayer.model_validate(result)
    return Layout.open(ctx.policy.check_store(params.target)).claim(packed.descriptor)


def _join_pack(ctx: Context, state: RechunkState, results: list[dict[str, Any]]) -> RechunkState:
    packed = {
        name: PackedLayer.model_validate(result) for name, result in zip(_wanted(ctx, state), results, strict=True)
    }
    return state.model_copy(update={"packed": packed})


# --- prove ---------------------------------------------------------------------------------------


def _make(ctx: Context, state: RechunkState, old: Resolved) -> NewImage:
    digest = old.descriptor.digest
    (number,) = (at for at, task in enumerate(state.tasks) if task.image.digest == digest)
    task = state.tasks[number]
    listed = _listed(ctx, state, number)
    packed = [
        layer.packed or state.packed[_name_of_layer(layer.digest, task.compression, state.level)] for layer in listed
    ]
    layers = [*old.manifest.layers[: task.keep], *(_in_order(each.descriptor) for each in packed)]
    warnings = list(state.laid[number].warnings)
    if [layer.digest for layer in layers] == [layer.digest for layer in old.manifest.layers]:
        return NewImage(old, None, warnings)
    names = [layer.name for layer in listed]
    config = rechunked_config(old.config, task.keep, names, [each.diff_id for each in packed], digest, state.epoch)
    target = target_of(ctx, state)
    image = write_image(target, old.path[-1:], old.manifest.model_copy(update={"layers": layers}), config)
    proof = prove(
        source_of(ctx, state),
        old,
        target,
        image,
        Allowed(clamp=state.epoch),
        operation="rechunk",
        parameters={"budget": state.budget, "keep": task.keep, "plan": state.plan},
        advanced=ctx.observer.advanced,
    )
    return NewImage(image, proof, warnings)


def _in_order(layer: Descriptor) -> Descriptor:
    """The descriptor with its fields in the order of a new one: what was read from a note keeps that of the note."""
    return Descriptor.model_validate(
        {
            "mediaType": layer.media_type,
            "digest": layer.digest,
            "size": layer.size,
            "annotations": dict(sorted((layer.annotations or {}).items())) or None,
        }
    )


RECHUNK = Flow(
    name="rechunk",
    request=RechunkRequest,
    state=RechunkState,
    stages=(
        import_stage(_kept),
        Stage("read", _plan_read, _run_read, _join_read),
        Stage("pack", _plan_pack, _run_pack, _join_pack, Equal(_name_of_pack, _is_there)),
        *closing_stages(RechunkState, _make),
    ),
    begin=_begin,
    finish=finish,
    clean=clean,
    result=TransformResult,
)
