"""The flow ``analyze``: find the components of an image, stored beside the store for plans and for ``rechunk``."""

from __future__ import annotations

from pathlib import Path

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.flows.base import Context, Flow, Model, WorkDirectory, name_of_work, work_directory
from layerfarm.jobs.flows.images import ImagesState, image_stage, images_behind, source_of
from layerfarm.jobs.flows.rechunk import analysis_options, spooled
from layerfarm.jobs.flows.stages import result_of
from layerfarm.jobs.flows.transforming import kept_layers
from layerfarm.jobs.flows.transforms import AnalyzeRequest, AnalyzeResult, ComponentRule, ImageParts
from layerfarm.jobs.image import Resolved
from layerfarm.jobs.relayer.analysis import AnalysisOptions, analyze, keep_analysis, kept_analysis
from layerfarm.jobs.relayer.indexes import platform_of
from layerfarm.jobs.relayer.spool import Spool
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import cache_path, may_write, user_cache


class AnalyzeState(ImagesState):
    image: str
    place: Path
    """The layout beside which the analyses are computed and stored."""
    keep: dict[str, int]
    """Number of kept layers of each image, by its digest."""
    epoch: int | None
    components: list[ComponentRule]
    result: AnalyzeResult | None = None

    def options(self, image: str) -> AnalysisOptions:
        return analysis_options(self.keep[image], self.epoch, self.components)


class _Found(Model):
    parts: ImageParts
    warnings: list[str]


def _begin(ctx: Context, request: AnalyzeRequest) -> AnalyzeState:
    store = ctx.store(request.image.store)
    images = images_behind(ctx, store.path, request.image.tag)
    place = _place(ctx, store)
    work_directory(ctx, place.path).create()
    return AnalyzeState(
        image=str(request.image),
        source=store.path,
        place=place.path,
        top=images.top,
        keep={image.descriptor.digest: kept_layers(ctx, image, request.keep, request.base) for image in images.images},
        epoch=request.source_date_epoch,
        components=request.components,
        warnings=images.warnings,
    )


def _place(ctx: Context, store: Layout) -> Layout:
    """Return the store or, if it is read-only, the user's cache; on a farm the cache is not an allowed store.

    Raises:
        StoreError: the farm's store is read-only.
    """
    if may_write(store):
        return store
    if ctx.policy.stores is not None:
        raise StoreError(
            "store is read-only, and an analysis is stored beside it",
            where=store.path,
            hint="copy the image into another store of the farm",
        )
    return user_cache()


def _run(ctx: Context, state: AnalyzeState, image: Resolved) -> _Found:
    digest = image.descriptor.digest
    keep, options, place = state.keep[digest], state.options(digest), ctx.store(state.place)
    analysis = kept_analysis(place, digest, options)
    if analysis is None:
        work = work_directory(ctx, place.path)
        work.create()
        content, spool_file = spooled(ctx, work, source_of(ctx, state), image, keep)
        with Spool(work.open(spool_file)) as spool:
            analysis = analyze(digest, content, spool, options).analysis
        keep_analysis(place, analysis, options)
    parts = ImageParts(
        platform=platform_of(image),
        image=digest,
        keep=keep,
        components=len(analysis.parts),
        files=sum(part.files for part in analysis.parts),
        bytes=sum(part.size for part in analysis.parts),
    )
    return _Found(parts=parts, warnings=list(analysis.warnings))


def _equal(ctx: Context, state: AnalyzeState, image: Resolved) -> str:
    digest = image.descriptor.digest
    parameters = [state.keep[digest], state.epoch, [rule.model_dump() for rule in state.components]]
    return name_of_work("analyze", str(state.source), str(state.place), digest, parameters)


def _holds(ctx: Context, state: AnalyzeState, found: _Found) -> bool:
    digest = found.parts.image
    return kept_analysis(ctx.store(state.place), digest, state.options(digest)) is not None


def _join(ctx: Context, state: AnalyzeState, results: dict[str, _Found]) -> AnalyzeState:
    result = AnalyzeResult(
        image=state.image,
        top=state.top.digest,
        images=[found.parts for found in results.values()],
        kept_in=str(state.place),
        warnings=[*state.warnings, *(text for found in results.values() for text in found.warnings)],
    )
    return state.model_copy(update={"result": result})


def _clean(ctx: Context, request: AnalyzeRequest, succeeded: bool) -> None:
    for place in (ctx.policy.check_store(request.image.store), cache_path()):
        WorkDirectory(place, ctx.work).remove()


ANALYZE = Flow(
    request=AnalyzeRequest,
    state=AnalyzeState,
    stages=(image_stage("analyze", AnalyzeState, _Found, _run, _join, equal=_equal, holds=_holds),),
    begin=_begin,
    finish=result_of,
    clean=_clean,
    result=AnalyzeResult,
)
