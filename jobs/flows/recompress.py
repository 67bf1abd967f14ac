"""The flow ``recompress``: every layer of an image in another compression, each layer done once."""

from __future__ import annotations

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
    image_set,
    importing,
    layer_is_there,
    records_of,
    source_of,
    target_of,
    transform_flow,
)
from layerfarm.jobs.flows.transforms import RecompressRequest
from layerfarm.jobs.image import PackedLayer, Resolved
from layerfarm.jobs.image.mutate import with_manifest
from layerfarm.jobs.relayer.indexes import ImageSet
from layerfarm.jobs.relayer.layers import needs_recompression, recompress_layer, recompressed
from layerfarm.jobs.relayer.proof import prove
from layerfarm.jobs.store import Descriptor, Layout


class RecompressState(TransformState):
    """What a recompression knows between two stages."""

    compression: Compression
    level: int | None
    keep: int
    recompressed: FileRef | None = None
    """:class:`~layerfarm.jobs.image.PackedLayer` by :func:`_key` of the old layer."""


def _begin(ctx: Context, request: RecompressRequest) -> RecompressState:
    Codec(Compression(request.compress), level=request.level)  # refuses a level that is none
    _, fields = begin(ctx, request)
    return RecompressState(compression=Compression(request.compress), level=request.level, keep=request.keep, **fields)


def _codec(state: RecompressState, threads: int = 1) -> Codec:
    return Codec(state.compression, level=state.level, threads=threads)


def _wanted(images: ImageSet, state: RecompressState) -> dict[tuple[str, str], Descriptor]:
    """The layers to be compressed anew, each once, by digest and diff_id."""
    codec = _codec(state)
    return {
        (layer.digest, diff_id): layer
        for image in images.images
        for layer, diff_id in image.layers[state.keep :]
        if needs_recompression(layer, codec, any_level=state.level is None)
    }


def _kept(ctx: Context, state: RecompressState) -> Import:
    """The layers that stay as they are have to be in the target's store, too."""
    images = image_set(ctx, state)
    wanted = _wanted(images, state)
    layers = (pair for image in images.images for pair in image.layers)
    return importing(ctx, state, [layer for layer, diff_id in layers if (layer.digest, diff_id) not in wanted])


# --- layers: each distinct one a unit, shared by all jobs of the farm ------------------------------


class _LayerUnit(Model):
    source: Path
    target: Path
    layer: Descriptor
    diff_id: str
    compression: Compression
    level: int | None


def _plan_layers(ctx: Context, state: RecompressState) -> list[Unit]:
    return [
        unit_of(
            _LayerUnit(
                source=state.source,
                target=state.target.store,
                layer=Descriptor(mediaType=layer.media_type, digest=layer.digest, size=layer.size, data=layer.data),
                diff_id=diff_id,
                compression=state.compression,
                level=state.level,
            ),
            nbytes=layer.size,
        )
        for (_, diff_id), layer in _wanted(image_set(ctx, state), state).items()
    ]


def _run_layer(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _LayerUnit.model_validate(unit.params)
    source = Layout.open(ctx.policy.check_store(params.source))
    target = Layout.open(ctx.policy.check_store(params.target))
    codec = Codec(params.compression, level=params.level, threads=ctx.policy.threads)
    packed = recompress_layer(source, target, params.layer, params.diff_id, codec, ctx.observer.advanced)
    return packed.model_dump(mode="json", by_alias=True)


def _name_of_layer(ctx: Context, unit: Unit) -> str:
    """The blob counts, too, not the diff_id alone: an image that lies about that is found out."""
    params = _LayerUnit.model_validate(unit.params)
    codec = codec_id(Codec(params.compression, level=params.level))
    return name_of_work("recompress", codec, str(params.target), params.layer.digest, params.diff_id)


def _join_layers(ctx: Context, state: RecompressState, results: list[dict[str, Any]]) -> RecompressState:
    done = {
        _key(*pair): PackedLayer.model_validate(result)
        for pair, result in zip(_wanted(image_set(ctx, state), state), results, strict=True)
    }
    file = keep_records(work_directory(ctx, state.target.store), "recompressed", done, PackedLayer)
    return state.model_copy(update={"recompressed": file})


def _key(digest: str, diff_id: str) -> str:
    return f"{digest} {diff_id}"


# --- prove ---------------------------------------------------------------------------------------


def _make(ctx: Context, state: RecompressState, old: Resolved) -> NewImage:
    done = records_of(ctx, state, state.recompressed, PackedLayer)
    layers: list[Descriptor] = []
    lost: set[str] = set()
    for number, (layer, diff_id) in enumerate(old.layers):
        packed = done.get(_key(layer.digest, diff_id)) if number >= state.keep else None
        if packed is None:
            layers.append(layer)
            continue
        new, gone = recompressed(layer, packed)
        layers.append(new)
        lost.update(gone)
    if layers == old.manifest.layers:
        return NewImage(old, None)
    target = target_of(ctx, state)
    image = with_manifest(target, old, old.manifest.model_copy(update={"layers": layers}))
    proof = prove(
        source_of(ctx, state),
        old,
        target,
        image,
        operation="recompress",
        parameters={"codec": codec_id(_codec(state)), "keep": state.keep},
    )
    warnings = [f"annotation {key!r} spoke of a layer's old bytes and is gone" for key in sorted(lost)]
    return NewImage(image, proof, warnings)


RECOMPRESS = transform_flow(
    RecompressRequest,
    RecompressState,
    _begin,
    (
        import_stage(_kept),
        Stage("layers", _plan_layers, _run_layer, _join_layers, Equal(_name_of_layer, layer_is_there)),
    ),
    _make,
)
