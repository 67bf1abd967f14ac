"""The flow ``rechunk``: an image in layers by content, each distinct one written once across the farm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerfarm.jobs.compress import Compression
from layerfarm.jobs.flows.base import Context, Equal, FileRef, Model, Stage, Unit, name_of_work, unit_of, work_directory
from layerfarm.jobs.flows.dissect import (
    Laid,
    Listed,
    Listing,
    ReadUnit,
    Task,
    chosen_codec,
    name_of_layer,
    note_layer,
    run_read,
)
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.records import keep_records
from layerfarm.jobs.flows.transforming import (
    NewImage,
    TransformState,
    begin,
    images_with,
    importing,
    kept_layers,
    layer_is_there,
    records_of,
    transform_flow,
    written,
)
from layerfarm.jobs.flows.transforms import ComponentRule, RechunkRequest
from layerfarm.jobs.image import PackedLayer, Resolved, pack_layer
from layerfarm.jobs.image.pack import choose_compression
from layerfarm.jobs.relayer.configs import rechunked_config
from layerfarm.jobs.relayer.equivalence import Allowed
from layerfarm.jobs.relayer.rechunk import read_plan, write_layer
from layerfarm.jobs.relayer.spool import Spool
from layerfarm.jobs.store import Descriptor, Layout


class RechunkState(TransformState):
    """What a rechunk knows between two stages."""

    budget: int
    plan: str | None
    level: int | None
    epoch: int | None
    components: list[ComponentRule]
    tasks: FileRef
    """:class:`~layerfarm.jobs.flows.dissect.Task` by the digest of the image."""
    laid: FileRef | None = None
    """:class:`~layerfarm.jobs.flows.dissect.Laid` by the digest of the image."""
    packed: FileRef | None = None
    """The layers that were written, by the digest of what they hold."""


def _begin(ctx: Context, request: RechunkRequest) -> RechunkState:
    images, fields = begin(ctx, request)
    if request.plan is not None:
        read_plan(Layout.open(fields["target"].store), request.plan)
    tasks = {}
    for image in images.images:
        keep = kept_layers(ctx, image, request.keep, request.base)
        compression = choose_compression(request.compress, image, request.level)
        tasks[image.descriptor.digest] = Task(image=image.descriptor, keep=keep, compression=compression)
    return RechunkState(
        budget=request.budget,
        plan=request.plan,
        level=request.level,
        epoch=request.source_date_epoch,
        components=request.components,
        tasks=keep_records(work_directory(ctx, fields["target"].store), "tasks", tasks, Task),
        **fields,
    )


def _tasks(ctx: Context, state: RechunkState) -> dict[str, Task]:
    return records_of(ctx, state, state.tasks, Task)


def _images(ctx: Context, state: RechunkState) -> Iterator[tuple[Resolved, Task]]:
    return images_with(ctx, state, state.tasks, Task)


def _kept(ctx: Context, state: RechunkState) -> Import:
    kept = [layer for image, task in _images(ctx, state) for layer in image.manifest.layers[: task.keep]]
    return importing(ctx, state, kept)


# --- read ----------------------------------------------------------------------------------------


def _plan_read(ctx: Context, state: RechunkState) -> list[Unit]:
    return [
        unit_of(
            ReadUnit(
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
        for image, task in _images(ctx, state)
    ]


def _join_read(ctx: Context, state: RechunkState, results: list[dict[str, Any]]) -> RechunkState:
    laid = {digest: Laid.model_validate(each) for digest, each in zip(_tasks(ctx, state), results, strict=True)}
    file = keep_records(work_directory(ctx, state.target.store), "laid", laid, Laid)
    return state.model_copy(update={"laid": file})


def _laid(ctx: Context, state: RechunkState) -> dict[str, Laid]:
    return records_of(ctx, state, state.laid, Laid)


def _listed(ctx: Context, state: RechunkState, laid: Laid) -> list[Listed]:
    """The layers of one image of the set, lowest first."""
    path = work_directory(ctx, state.target.store).open(laid.listing)
    return Listing.model_validate_json(path.read_bytes()).layers


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
    tasks = _tasks(ctx, state)
    for digest, laid in _laid(ctx, state).items():
        task = tasks[digest]
        for layer in _listed(ctx, state, laid):
            if layer.recipe is not None and layer.spool is not None:
                units.setdefault(
                    name_of_layer(layer.digest, task.compression, state.level),
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
    sizes = {layer.digest: layer.bytes for laid in _laid(ctx, state).values() for layer in _listed(ctx, state, laid)}
    return [unit_of(unit, nbytes=sizes[unit.digest]) for unit in _wanted(ctx, state).values()]


def _run_pack(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _PackUnit.model_validate(unit.params)
    target = Layout.open(ctx.policy.check_store(params.target))
    work = work_directory(ctx, target.path)
    codec = chosen_codec(params.compression, params.level, ctx.policy.threads)
    with work.open(params.recipe).open("rb") as recipe, Spool(work.open(params.spool)) as spool:
        packed = pack_layer(target, _told(write_layer(recipe, spool), ctx), codec)
    note_layer(target, name_of_layer(params.digest, params.compression, params.level), packed)
    return packed.model_dump(mode="json", by_alias=True)


def _told(pieces: Iterator[bytes], ctx: Context) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        ctx.observer.advanced(len(piece))


def _name_of_pack(ctx: Context, unit: Unit) -> str:
    params = _PackUnit.model_validate(unit.params)
    return name_of_work(str(params.target), name_of_layer(params.digest, params.compression, params.level))


def _join_pack(ctx: Context, state: RechunkState, results: list[dict[str, Any]]) -> RechunkState:
    packed = {
        name: PackedLayer.model_validate(result) for name, result in zip(_wanted(ctx, state), results, strict=True)
    }
    file = keep_records(work_directory(ctx, state.target.store), "packed", packed, PackedLayer)
    return state.model_copy(update={"packed": file})


# --- prove ---------------------------------------------------------------------------------------


def _make(ctx: Context, state: RechunkState, old: Resolved) -> NewImage:
    digest = old.descriptor.digest
    task, laid = _tasks(ctx, state)[digest], _laid(ctx, state)[digest]
    listed = _listed(ctx, state, laid)
    written_now = records_of(ctx, state, state.packed, PackedLayer)
    packed = [
        layer.packed or written_now[name_of_layer(layer.digest, task.compression, state.level)] for layer in listed
    ]
    layers = [*old.manifest.layers[: task.keep], *(_in_order(each.descriptor) for each in packed)]
    warnings = list(laid.warnings)
    if [layer.digest for layer in layers] == [layer.digest for layer in old.manifest.layers]:
        return NewImage(old, None, warnings)
    names = [layer.name for layer in listed]
    config = rechunked_config(old.config, task.keep, names, [each.diff_id for each in packed], digest, state.epoch)
    parameters = {"budget": state.budget, "keep": task.keep, "plan": state.plan}
    return written(ctx, state, old, layers, config, Allowed(clamp=state.epoch), "rechunk", parameters, warnings)


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


RECHUNK = transform_flow(
    RechunkRequest,
    RechunkState,
    _begin,
    (
        import_stage(_kept),
        Stage("read", _plan_read, run_read, _join_read),
        Stage("pack", _plan_pack, _run_pack, _join_pack, Equal(_name_of_pack, layer_is_there)),
    ),
    _make,
)
