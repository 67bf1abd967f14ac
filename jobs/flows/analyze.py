"""The flow ``analyze``: what an image consists of, kept beside the store for plans and for ``rechunk``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.flows.base import (
    Context,
    Equal,
    Flow,
    Model,
    Stage,
    State,
    Unit,
    WorkDirectory,
    name_of_work,
    unit_of,
    work_directory,
)
from layerfarm.jobs.flows.dissect import analysis_options, spooled
from layerfarm.jobs.flows.transforming import kept_layers
from layerfarm.jobs.flows.transforms import AnalyzeRequest, AnalyzeResult, ComponentRule, ImageParts
from layerfarm.jobs.image import Resolved, resolve_walk
from layerfarm.jobs.relayer.analysis import Analysis, analyze, keep_analysis, kept_analysis
from layerfarm.jobs.relayer.indexes import follow, platform_of, read_images
from layerfarm.jobs.relayer.spool import Spool
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import cache_path, may_write, user_cache


class AnalyzeState(State):
    """What an analysis knows between its stages."""

    image: str
    store: Path
    place: Path
    """The layout beside which it is worked, and the analysis kept."""
    top: Descriptor
    keep: list[int]
    """Of each image of the set."""
    epoch: int | None
    components: list[ComponentRule]
    found: list[ImageParts] = []
    warnings: list[str] = []


class _Unit(Model):
    store: Path
    place: Path
    image: Descriptor
    keep: int
    epoch: int | None
    components: list[ComponentRule]


def _begin(ctx: Context, request: AnalyzeRequest) -> AnalyzeState:
    store = Layout.open(ctx.policy.check_store(request.image.store))
    images = read_images(store, request.image.tag)
    place = _place(ctx, store)
    work_directory(ctx, place.path).create()
    return AnalyzeState(
        image=str(request.image),
        store=store.path,
        place=place.path,
        top=images.top,
        keep=[kept_layers(ctx, image, request.keep, request.base) for image in images.images],
        epoch=request.source_date_epoch,
        components=request.components,
    )


def _place(ctx: Context, store: Layout) -> Layout:
    """The store itself or, if it may only be read, the user's cache: on a farm that is none of the operator's stores.

    Raises:
        StoreError: there is no place.
    """
    if may_write(store):
        return store
    if ctx.policy.stores is not None:
        raise StoreError(
            "store may only be read, and an analysis is kept beside it",
            where=store.path,
            hint="copy the image into another store of the farm",
        )
    return user_cache()


def _plan(ctx: Context, state: AnalyzeState) -> list[Unit]:
    images = follow(Layout.open(ctx.policy.check_store(state.store)), state.top).images
    return [
        unit_of(
            _Unit(
                store=state.store,
                place=state.place,
                image=image.descriptor,
                keep=keep,
                epoch=state.epoch,
                components=state.components,
            ),
            nbytes=sum(layer.size for layer in image.manifest.layers),
        )
        for image, keep in zip(images, state.keep, strict=True)
    ]


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _Unit.model_validate(unit.params)
    layout = Layout.open(ctx.policy.check_store(params.store))
    image = resolve_walk(layout, [params.image])
    options = analysis_options(params.keep, params.epoch, params.components)
    place = Layout.open(ctx.policy.check_store(params.place))
    analysis = kept_analysis(place, params.image.digest, options)
    if analysis is None:
        analysis = _analyzed(ctx, layout, image, params)
        keep_analysis(place, analysis, options)
    found = ImageParts(
        platform=platform_of(image),
        image=params.image.digest,
        keep=params.keep,
        components=len(analysis.parts),
        files=sum(part.files for part in analysis.parts),
        bytes=sum(part.size for part in analysis.parts),
    )
    return {"found": found.model_dump(mode="json"), "warnings": list(analysis.warnings)}


def _analyzed(ctx: Context, layout: Layout, image: Resolved, params: _Unit) -> Analysis:
    work = work_directory(ctx, params.place)
    work.create()
    content, spool_file = spooled(ctx, work, layout, image, params.keep)
    with Spool(work.open(spool_file)) as spool:
        options = analysis_options(params.keep, params.epoch, params.components)
        return analyze(image.descriptor.digest, content, spool, options).analysis


def _name(ctx: Context, unit: Unit) -> str:
    return name_of_work("analyze", unit.params)


def _is_kept(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _Unit.model_validate(unit.params)
    place = Layout.open(ctx.policy.check_store(params.place))
    options = analysis_options(params.keep, params.epoch, params.components)
    return kept_analysis(place, params.image.digest, options) is not None


def _join(ctx: Context, state: AnalyzeState, results: list[dict[str, Any]]) -> AnalyzeState:
    return state.model_copy(
        update={
            "found": [ImageParts.model_validate(result["found"]) for result in results],
            "warnings": [text for result in results for text in result["warnings"]],
        }
    )


def _finish(ctx: Context, state: AnalyzeState) -> AnalyzeResult:
    return AnalyzeResult(
        image=state.image,
        top=state.top.digest,
        images=state.found,
        kept_in=str(state.place),
        warnings=state.warnings,
    )


def _clean(ctx: Context, request: AnalyzeRequest, succeeded: bool) -> None:
    for place in (ctx.policy.check_store(request.image.store), cache_path()):
        WorkDirectory(place, ctx.work).remove()


ANALYZE = Flow(
    request=AnalyzeRequest,
    state=AnalyzeState,
    stages=(Stage("analyze", _plan, _run, _join, Equal(_name, _is_kept)),),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=AnalyzeResult,
)
