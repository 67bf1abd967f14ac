"""The flow ``strip``: paths out of an image, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.errors import StoreError, TreeChanged
from layerfarm.jobs.flows.base import Context, Equal, FileRef, Model, Stage, Unit, name_of_work, unit_of, work_directory
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.records import keep_records
from layerfarm.jobs.flows.transforming import (
    NewImage,
    TransformState,
    begin,
    image_set,
    importing,
    records_of,
    target_of,
    transform_flow,
    written,
)
from layerfarm.jobs.flows.transforms import StripRequest
from layerfarm.jobs.image import PackedLayer, Resolved, resolve_walk
from layerfarm.jobs.relayer.configs import stripped_config
from layerfarm.jobs.relayer.equivalence import Allowed
from layerfarm.jobs.relayer.layers import linux_only, strip_layers
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import read_result, write_result


class Stripped(Model):
    """The new layers of one image, by their position from 0."""

    layers: dict[int, PackedLayer]


_NOTES = "stripped"
"""Kind of the notes that hold one: other jobs whose work is equal read it, too."""


class StripState(TransformState):
    """What a strip knows between two stages."""

    paths: list[str]
    level: int | None
    epoch: int | None
    stripped: FileRef | None = None
    """:class:`Stripped` by the digest of the image."""


def _begin(ctx: Context, request: StripRequest) -> StripState:
    images, fields = begin(ctx, request)
    for image in images.images:
        linux_only(image)
    return StripState(paths=request.paths, level=request.level, epoch=request.source_date_epoch, **fields)


# --- layers: all of one image a unit, for each is told apart by those below ------------------------


class _StripUnit(Model):
    source: Path
    target: Path
    image: Descriptor
    paths: list[str]
    level: int | None
    epoch: int | None


def _plan_layers(ctx: Context, state: StripState) -> list[Unit]:
    return [
        unit_of(
            _StripUnit(
                source=state.source,
                target=state.target.store,
                image=image.descriptor,
                paths=state.paths,
                level=state.level,
                epoch=state.epoch,
            ),
            nbytes=sum(layer.size for layer in image.manifest.layers),
        )
        for image in image_set(ctx, state).images
    ]


def _run_layers(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _StripUnit.model_validate(unit.params)
    source = Layout.open(ctx.policy.check_store(params.source))
    target = Layout.open(ctx.policy.check_store(params.target))
    image = resolve_walk(source, [params.image])
    done = strip_layers(
        source, target, image, params.paths, params.level, ctx.policy.threads, params.epoch, ctx.observer.advanced
    )
    note = _name_of_layers(ctx, unit)
    if not write_result(target, _NOTES, note, Stripped(layers=done).model_dump_json(by_alias=True).encode()):
        raise StoreError("what was stripped cannot be noted", where=target.path)
    return {"note": note}


def _noted(target: Layout, result: dict[str, Any]) -> Stripped | None:
    content = read_result(target, _NOTES, result["note"])
    return None if content is None else Stripped.model_validate_json(content)


def _name_of_layers(ctx: Context, unit: Unit) -> str:
    """By the layers: images that differ in their config only have the same ones."""
    params = _StripUnit.model_validate(unit.params)
    image = resolve_walk(Layout.open(ctx.policy.check_store(params.source)), [params.image])
    layers = [(layer.digest, diff_id) for layer, diff_id in image.layers]
    codecs = [codec_id(Codec(kind)) for kind in (Compression.GZIP, Compression.ZSTD)]
    return name_of_work("strip", codecs, params.level, str(params.target), layers, params.paths, params.epoch)


def _is_there(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _StripUnit.model_validate(unit.params)
    target = Layout.open(ctx.policy.check_store(params.target))
    done = _noted(target, result)
    return done is not None and all(target.claim(packed.descriptor) for packed in done.layers.values())


def _join_layers(ctx: Context, state: StripState, results: list[dict[str, Any]]) -> StripState:
    target = target_of(ctx, state)
    stripped = {}
    for image, result in zip(image_set(ctx, state).images, results, strict=True):
        done = _noted(target, result)
        if done is None:
            raise TreeChanged("a note of the job is gone", where=result["note"])
        stripped[image.descriptor.digest] = done
    file = keep_records(work_directory(ctx, target.path), "stripped", stripped, Stripped)
    return state.model_copy(update={"stripped": file})


def _stripped(ctx: Context, state: StripState) -> dict[str, Stripped]:
    return records_of(ctx, state, state.stripped, Stripped)


def _kept(ctx: Context, state: StripState) -> Import:
    """The layers that nothing was taken from."""
    stripped = _stripped(ctx, state)
    kept = [
        layer
        for image in image_set(ctx, state).images
        for position, layer in enumerate(image.manifest.layers)
        if position not in stripped[image.descriptor.digest].layers
    ]
    return importing(ctx, state, kept)


# --- prove ---------------------------------------------------------------------------------------


def _make(ctx: Context, state: StripState, old: Resolved) -> NewImage:
    done = _stripped(ctx, state)[old.descriptor.digest].layers
    if not done:
        return NewImage(old, None, ["nothing in the image matches"])
    layers = [done[at].descriptor if at in done else layer for at, layer in enumerate(old.manifest.layers)]
    config = stripped_config(old.config, done, state.paths, state.epoch)
    allowed = Allowed(clamp=state.epoch, removed=tuple(state.paths))
    return written(ctx, state, old, layers, config, allowed, "strip", {"paths": state.paths})


STRIP = transform_flow(
    StripRequest,
    StripState,
    _begin,
    (
        Stage("layers", _plan_layers, _run_layers, _join_layers, Equal(_name_of_layers, _is_there)),
        import_stage(_kept),
    ),
    _make,
)
