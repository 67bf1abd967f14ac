"""The flow ``strip``: remove paths from an image, layer by layer."""

from __future__ import annotations

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.errors import StoreError, TreeChanged
from layerfarm.jobs.flows.base import Context, FileRef, Model, name_of_work
from layerfarm.jobs.flows.images import image_stage, source_of
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.transforming import (
    TransformedImage,
    TransformState,
    begin,
    images_with,
    importing,
    keeping,
    target_of,
    transform_flow,
    work_of,
    written,
)
from layerfarm.jobs.flows.transforms import StripRequest
from layerfarm.jobs.image import PackedLayer, Resolved
from layerfarm.jobs.relayer.configs import stripped_config
from layerfarm.jobs.relayer.equivalence import Tolerance
from layerfarm.jobs.relayer.layers import strip_layers
from layerfarm.jobs.store.result_cache import read_result, write_result

_NOTES = "stripped"
"""Kind of the notes that hold one :class:`Stripped`: jobs with equal work read it, too."""


class Stripped(Model):
    """The new layers of one image, by their position from 0."""

    layers: dict[int, PackedLayer]


class StripState(TransformState):
    """State of a strip."""

    paths: list[str]
    level: int | None
    epoch: int | None
    stripped: FileRef | None = None
    """:class:`Noted` by the digest of the image."""


def _begin(ctx: Context, request: StripRequest) -> StripState:
    _, fields = begin(ctx, request)
    return StripState(paths=request.paths, level=request.level, epoch=request.source_date_epoch, **fields)


# --- layers: those of one image are one unit, as each depends on the layers below it -----------------


class Noted(Model):
    """Name of the note that holds a :class:`Stripped`: a message must not grow with the image."""

    note: str


def _run(ctx: Context, state: StripState, image: Resolved) -> Noted:
    source, target, told = source_of(ctx, state), target_of(ctx, state), ctx.observer.advanced
    done = strip_layers(source, target, image, state.paths, state.level, ctx.policy.threads, state.epoch, told)
    note = _equal(ctx, state, image)
    if not write_result(target, _NOTES, note, Stripped(layers=done).model_dump_json(by_alias=True).encode()):
        raise StoreError("result of the strip cannot be stored", where=target.path)
    return Noted(note=note)


def _equal(ctx: Context, state: StripState, image: Resolved) -> str:
    # By the layers: images that differ only in their configs have the same ones.
    layers = [(layer.digest, diff_id) for layer, diff_id in image.layers]
    codecs = [codec_id(Codec(kind)) for kind in Compression]
    return name_of_work("strip", codecs, state.level, str(state.target.store), layers, state.paths, state.epoch)


def _holds(ctx: Context, state: StripState, found: Noted) -> bool:
    target = target_of(ctx, state)
    content = read_result(target, _NOTES, found.note)
    return content is not None and all(target.claim(packed.descriptor) for packed in _parsed(content).values())


def _parsed(content: bytes) -> dict[int, PackedLayer]:
    return Stripped.model_validate_json(content).layers


def _stripped(ctx: Context, state: StripState, noted: Noted) -> dict[int, PackedLayer]:
    """Return the new layers of one image, by their position from 0."""
    content = read_result(target_of(ctx, state), _NOTES, noted.note)
    if content is None:
        raise TreeChanged("a record of the job was removed", where=noted.note)
    return _parsed(content)


def _kept(ctx: Context, state: StripState) -> Import:
    """Return the layers from which nothing was removed."""
    kept = []
    for image, noted in images_with(ctx, state, state.stripped, Noted):
        new = _stripped(ctx, state, noted)
        kept += [layer for position, layer in enumerate(image.manifest.layers) if position not in new]
    return importing(ctx, state, kept)


def _make(ctx: Context, state: StripState, old: Resolved) -> TransformedImage:
    done = _stripped(ctx, state, work_of(ctx, state).kept(state.stripped, Noted)[old.descriptor.digest])
    if not done:
        return TransformedImage(old, None, ["nothing in the image matches"])
    layers = [done[at].descriptor if at in done else layer for at, layer in enumerate(old.manifest.layers)]
    config = stripped_config(old.config, done, state.paths, state.epoch)
    allowed = Tolerance(clamp=state.epoch, removed=tuple(state.paths))
    warnings = [text for packed in done.values() for text in packed.warnings]
    return written(ctx, state, old, layers, config, allowed, "strip", {"paths": state.paths}, warnings)


STRIP = transform_flow(
    StripRequest,
    StripState,
    _begin,
    (
        image_stage("layers", StripState, Noted, _run, keeping("stripped", Noted), equal=_equal, holds=_holds),
        import_stage(_kept),
    ),
    _make,
)
