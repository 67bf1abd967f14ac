"""The flow ``squash``: merge several layers of an image into one."""

from __future__ import annotations

from collections.abc import Iterator

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.flows.base import Context, FileRef, Model, name_of_work, work_directory
from layerfarm.jobs.flows.images import image_stage, source_of
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.transforming import (
    TransformedImage,
    TransformState,
    begin,
    images_with,
    importing,
    keeping,
    kept_layers,
    target_of,
    transform_flow,
    work_of,
    written,
)
from layerfarm.jobs.flows.transforms import SquashRequest
from layerfarm.jobs.image import PackedLayer, Resolved
from layerfarm.jobs.image.pack import choose_compression
from layerfarm.jobs.relayer.configs import squashed_config
from layerfarm.jobs.relayer.equivalence import Tolerance
from layerfarm.jobs.relayer.layers import check_range, squash_layers


class Range(Model):
    """The layers of one image that are merged, and the compression of the result."""

    keep: int
    upto: int
    compression: Compression

    @property
    def is_one(self) -> bool:
        """True if there is nothing to merge."""
        return self.upto - self.keep < 2


class SquashState(TransformState):
    """State of a squash."""

    level: int | None
    prefetch: list[str]
    epoch: int | None
    ranges: FileRef
    """:class:`Range` by the digest of the image."""
    squashed: FileRef | None = None
    """:class:`~layerfarm.jobs.image.PackedLayer` by the digest of the image; none if nothing was merged."""


def _begin(ctx: Context, request: SquashRequest) -> SquashState:
    images, fields = begin(ctx, request)
    ranges = {}
    for image in images.images:
        keep = kept_layers(ctx, image, request.keep, request.base)
        compression = choose_compression(request.compress, image, request.level, request.prefetch)
        upto = check_range(image, keep, request.upto)
        ranges[image.descriptor.digest] = Range(keep=keep, upto=upto, compression=compression)
    file = work_directory(ctx, fields["target"].store).keep("ranges", ranges, Range)
    return SquashState(
        level=request.level, prefetch=request.prefetch, epoch=request.source_date_epoch, ranges=file, **fields
    )


def _images(ctx: Context, state: SquashState) -> Iterator[tuple[Resolved, Range]]:
    return images_with(ctx, state, state.ranges, Range)


def _kept(ctx: Context, state: SquashState) -> Import:
    kept = []
    for image, each in _images(ctx, state):
        layers = image.manifest.layers
        kept += layers if each.is_one else [*layers[: each.keep], *layers[each.upto :]]
    return importing(ctx, state, kept)


def _costs(ctx: Context, state: SquashState) -> Iterator[tuple[Resolved, int]]:
    for image, each in _images(ctx, state):
        if not each.is_one:
            # Each layer is read for its entries, and again for its content.
            yield image, 2 * sum(layer.size for layer in image.manifest.layers[: each.upto])


def _range(ctx: Context, state: SquashState, image: Resolved) -> Range:
    return work_of(ctx, state).kept(state.ranges, Range)[image.descriptor.digest]


def _codec(state: SquashState, compression: Compression, threads: int = 1) -> Codec:
    return Codec(compression, level=state.level, threads=threads, prefetch=tuple(state.prefetch))


def _run(ctx: Context, state: SquashState, image: Resolved) -> PackedLayer:
    each = _range(ctx, state, image)
    codec = _codec(state, each.compression, ctx.policy.threads)
    source, target = source_of(ctx, state), target_of(ctx, state)
    return squash_layers(source, target, image, each.keep, each.upto, codec, state.epoch, ctx.observer.advanced)


def _equal(ctx: Context, state: SquashState, image: Resolved) -> str:
    # By the layers: images that differ only in their configs have the same ones.
    each = _range(ctx, state, image)
    layers = [(layer.digest, diff_id) for layer, diff_id in image.layers[: each.upto]]
    codec = codec_id(_codec(state, each.compression))
    return name_of_work("squash", codec, str(state.target.store), layers, each.keep, state.epoch)


def _holds(ctx: Context, state: SquashState, packed: PackedLayer) -> bool:
    return target_of(ctx, state).claim(packed.descriptor)


def _make(ctx: Context, state: SquashState, old: Resolved) -> TransformedImage:
    digest = old.descriptor.digest
    each = _range(ctx, state, old)
    if each.is_one:
        return TransformedImage(old, None)
    packed = work_of(ctx, state).kept(state.squashed, PackedLayer)[digest]
    layers = old.manifest.layers
    layers = [*layers[: each.keep], packed.descriptor, *layers[each.upto :]]
    config = squashed_config(old.config, each.keep, each.upto, packed.diff_id, digest, state.epoch)
    parameters = {"keep": each.keep, "upto": each.upto}
    return written(ctx, state, old, layers, config, Tolerance(clamp=state.epoch), "squash", parameters, packed.warnings)


_LAYERS = image_stage(
    "layers",
    SquashState,
    PackedLayer,
    _run,
    keeping("squashed", PackedLayer),
    costs=_costs,
    equal=_equal,
    holds=_holds,
)
SQUASH = transform_flow(SquashRequest, SquashState, _begin, (import_stage(_kept), _LAYERS), _make)
