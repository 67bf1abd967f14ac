"""The flow ``squash``: several layers of an image become one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.flows.base import Context, Equal, FileRef, Model, Stage, Unit, name_of_work, unit_of, work_directory
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
from layerfarm.jobs.flows.transforms import SquashRequest
from layerfarm.jobs.image import PackedLayer, Resolved, resolve_walk
from layerfarm.jobs.image.pack import choose_compression
from layerfarm.jobs.relayer.configs import squashed_config
from layerfarm.jobs.relayer.equivalence import Allowed
from layerfarm.jobs.relayer.layers import check_range, squash_layers
from layerfarm.jobs.store import Descriptor, Layout


class Range(Model):
    """Which layers of one image are merged, and how the result is compressed."""

    keep: int
    upto: int
    compression: Compression

    @property
    def is_one(self) -> bool:
        """There is nothing to be merged."""
        return self.upto - self.keep < 2


class SquashState(TransformState):
    """What a squash knows between two stages."""

    level: int | None
    epoch: int | None
    ranges: FileRef
    """:class:`Range` by the digest of the image."""
    squashed: FileRef | None = None
    """:class:`~layerfarm.jobs.image.PackedLayer` by the digest of the image; none where nothing had to be done."""


def _begin(ctx: Context, request: SquashRequest) -> SquashState:
    images, fields = begin(ctx, request)
    ranges = {}
    for image in images.images:
        keep = kept_layers(ctx, image, request.keep, request.base)
        compression = choose_compression(request.compress, image, request.level)
        upto = check_range(image, keep, request.upto)
        ranges[image.descriptor.digest] = Range(keep=keep, upto=upto, compression=compression)
    file = keep_records(work_directory(ctx, fields["target"].store), "ranges", ranges, Range)
    return SquashState(level=request.level, epoch=request.source_date_epoch, ranges=file, **fields)


def _ranges(ctx: Context, state: SquashState) -> dict[str, Range]:
    return records_of(ctx, state, state.ranges, Range)


def _images(ctx: Context, state: SquashState) -> Iterator[tuple[Resolved, Range]]:
    """Each image of the set, once, and what is merged of it."""
    return images_with(ctx, state, state.ranges, Range)


def _kept(ctx: Context, state: SquashState) -> Import:
    kept = []
    for image, each in _images(ctx, state):
        layers = image.manifest.layers
        kept += layers if each.is_one else [*layers[: each.keep], *layers[each.upto :]]
    return importing(ctx, state, kept)


# --- layers --------------------------------------------------------------------------------------


class _SquashUnit(Model):
    source: Path
    target: Path
    image: Descriptor
    keep: int
    upto: int
    compression: Compression
    level: int | None
    epoch: int | None


def _plan_layers(ctx: Context, state: SquashState) -> list[Unit]:
    units = []
    for image, each in _images(ctx, state):
        if not each.is_one:
            params = _SquashUnit(
                source=state.source,
                target=state.target.store,
                image=image.descriptor,
                keep=each.keep,
                upto=each.upto,
                compression=each.compression,
                level=state.level,
                epoch=state.epoch,
            )
            # Each layer is read to know its entries, and once more for its content.
            units.append(unit_of(params, nbytes=2 * sum(layer.size for layer in image.manifest.layers[: each.upto])))
    return units


def _run_layers(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _SquashUnit.model_validate(unit.params)
    source = Layout.open(ctx.policy.check_store(params.source))
    target = Layout.open(ctx.policy.check_store(params.target))
    image = resolve_walk(source, [params.image])
    codec = Codec(params.compression, level=params.level, threads=ctx.policy.threads)
    packed = squash_layers(source, target, image, params.keep, params.upto, codec, params.epoch, ctx.observer.advanced)
    return packed.model_dump(mode="json", by_alias=True)


def _name_of_layers(ctx: Context, unit: Unit) -> str:
    """By the layers: images that differ in their config only have the same ones."""
    params = _SquashUnit.model_validate(unit.params)
    image = resolve_walk(Layout.open(ctx.policy.check_store(params.source)), [params.image])
    layers = [(layer.digest, diff_id) for layer, diff_id in image.layers[: params.upto]]
    codec = codec_id(Codec(params.compression, level=params.level))
    return name_of_work("squash", codec, str(params.target), layers, params.keep, params.epoch)


def _join_layers(ctx: Context, state: SquashState, results: list[dict[str, Any]]) -> SquashState:
    done = iter(results)
    squashed = {
        image.descriptor.digest: PackedLayer.model_validate(next(done))
        for image, each in _images(ctx, state)
        if not each.is_one
    }
    file = keep_records(work_directory(ctx, state.target.store), "squashed", squashed, PackedLayer)
    return state.model_copy(update={"squashed": file})


# --- prove ---------------------------------------------------------------------------------------


def _make(ctx: Context, state: SquashState, old: Resolved) -> NewImage:
    each = _ranges(ctx, state)[old.descriptor.digest]
    if each.is_one:
        return NewImage(old, None)
    packed = records_of(ctx, state, state.squashed, PackedLayer)[old.descriptor.digest]
    layers = old.manifest.layers
    layers = [*layers[: each.keep], packed.descriptor, *layers[each.upto :]]
    config = squashed_config(old.config, each.keep, each.upto, packed.diff_id, old.descriptor.digest, state.epoch)
    parameters = {"keep": each.keep, "upto": each.upto}
    return written(ctx, state, old, layers, config, Allowed(clamp=state.epoch), "squash", parameters)


SQUASH = transform_flow(
    SquashRequest,
    SquashState,
    _begin,
    (
        import_stage(_kept),
        Stage("layers", _plan_layers, _run_layers, _join_layers, Equal(_name_of_layers, layer_is_there)),
    ),
    _make,
)
