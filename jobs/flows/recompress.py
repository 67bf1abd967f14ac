"""The flow ``recompress``: every layer of an image in another compression, each layer once."""

from __future__ import annotations

from pathlib import Path

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.flows.base import Context, FileRef, name_of_work
from layerfarm.jobs.flows.images import image_set, source_of
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.stages import Planned
from layerfarm.jobs.flows.transforming import (
    LayerWork,
    TransformedImage,
    TransformState,
    begin,
    importing,
    layer_stage,
    target_of,
    transform_flow,
    work_of,
    written,
)
from layerfarm.jobs.flows.transforms import RecompressRequest
from layerfarm.jobs.image import PackedLayer, Resolved
from layerfarm.jobs.image.mutate import with_manifest
from layerfarm.jobs.relayer.configs import with_diff_ids
from layerfarm.jobs.relayer.equivalence import EXACT
from layerfarm.jobs.relayer.layers import needs_recompression, recompress_layer, recompressed
from layerfarm.jobs.relayer.proof import prove
from layerfarm.jobs.store import Descriptor


class RecompressState(TransformState):
    """State of a recompression."""

    compression: Compression
    level: int | None
    prefetch: list[str]
    keep: int
    recompressed: FileRef | None = None
    """:class:`~layerfarm.jobs.image.PackedLayer` by :func:`_key` of the old layer."""

    def codec(self) -> Codec:
        return Codec(self.compression, level=self.level, prefetch=tuple(self.prefetch))


def _begin(ctx: Context, request: RecompressRequest) -> RecompressState:
    compression = Compression(request.compress)
    Codec(compression, level=request.level, prefetch=tuple(request.prefetch))  # refuses an invalid level
    # Layers of any system can be recompressed, but eStargz adds files to them.
    _, fields = begin(ctx, request, linux=compression is Compression.ESTARGZ)
    return RecompressState(
        compression=compression, level=request.level, prefetch=request.prefetch, keep=request.keep, **fields
    )


def _key(layer: Descriptor, diff_id: str) -> str:
    return f"{layer.digest} {diff_id}"


def _wanted(ctx: Context, state: RecompressState) -> dict[str, tuple[Descriptor, str]]:
    """Return the layers to recompress, each once, with their diff_ids."""
    store, codec = source_of(ctx, state), state.codec()
    return {
        _key(layer, diff_id): (layer, diff_id)
        for image in image_set(ctx, state).images
        for layer, diff_id in image.layers[state.keep :]
        if needs_recompression(store, layer, codec, any_level=state.level is None and not state.prefetch)
    }


def _kept(ctx: Context, state: RecompressState) -> Import:
    wanted = _wanted(ctx, state)
    pairs = (pair for image in image_set(ctx, state).images for pair in image.layers)
    return importing(ctx, state, [layer for layer, diff_id in pairs if _key(layer, diff_id) not in wanted])


class _Work(LayerWork):
    source: Path
    layer: Descriptor
    diff_id: str
    compression: Compression
    level: int | None
    prefetch: list[str]

    def codec(self, threads: int = 1) -> Codec:
        return Codec(self.compression, level=self.level, threads=threads, prefetch=tuple(self.prefetch))


def _plan(ctx: Context, state: RecompressState) -> Planned[_Work]:
    return {
        key: (
            _Work(
                source=state.source,
                target=state.target.store,
                layer=Descriptor(mediaType=layer.media_type, digest=layer.digest, size=layer.size, data=layer.data),
                diff_id=diff_id,
                compression=state.compression,
                level=state.level,
                prefetch=state.prefetch,
            ),
            layer.size,
        )
        for key, (layer, diff_id) in _wanted(ctx, state).items()
    }


def _run(ctx: Context, work: _Work) -> PackedLayer:
    codec = work.codec(ctx.policy.threads)
    source = ctx.store(work.source)
    return recompress_layer(source, ctx.store(work.target), work.layer, work.diff_id, codec, ctx.observer.advanced)


def _equal(ctx: Context, work: _Work) -> str:
    # The digest counts too, not only the diff_id: an image with a false diff_id must fail.
    return name_of_work("recompress", codec_id(work.codec()), str(work.target), work.layer.digest, work.diff_id)


def _make(ctx: Context, state: RecompressState, old: Resolved) -> TransformedImage:
    done = work_of(ctx, state).kept(state.recompressed, PackedLayer)
    layers: list[Descriptor] = []
    diff_ids: list[str] = []
    lost: set[str] = set()
    warnings: list[str] = []
    for number, (layer, diff_id) in enumerate(old.layers):
        packed = done.get(_key(layer, diff_id)) if number >= state.keep else None
        diff_ids.append(diff_id if packed is None else packed.diff_id)
        if packed is None:
            layers.append(layer)
            continue
        new, gone = recompressed(layer, packed)
        layers.append(new)
        lost.update(gone)
        warnings += packed.warnings
    if layers == old.manifest.layers:
        return TransformedImage(old, None)
    target = target_of(ctx, state)
    warnings += (f"annotation {key!r} described a layer's old bytes and was removed" for key in sorted(lost))
    parameters = {"codec": codec_id(state.codec()), "keep": state.keep}
    if diff_ids != old.config.rootfs.diff_ids:
        config = with_diff_ids(old.config, diff_ids)
        return written(ctx, state, old, layers, config, EXACT, "recompress", parameters, warnings)
    image = with_manifest(target, old, old.manifest.model_copy(update={"layers": layers}))
    proof = prove(source_of(ctx, state), old, target, image, operation="recompress", parameters=parameters)
    return TransformedImage(image, proof, warnings)


RECOMPRESS = transform_flow(
    RecompressRequest,
    RecompressState,
    _begin,
    (import_stage(_kept), layer_stage("layers", _Work, _plan, _run, "recompressed", _equal)),
    _make,
)
