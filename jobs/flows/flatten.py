"""The flow ``flatten``: write the trees of images as directories or tars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Literal

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows.base import Context, Flow, staging_name
from layerfarm.jobs.flows.images import ImagesState, image_set, image_stage, images_behind, pin, source_of
from layerfarm.jobs.flows.stages import result_of
from layerfarm.jobs.flows.transforms import FlattenRequest, FlattenResult, FlatTree
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.relayer.flatten import flatten
from layerfarm.jobs.relayer.indexes import platform_of


class FlattenState(ImagesState):
    output: Path
    form: Literal["directory", "tar"]
    rootless: bool
    epoch: int | None
    result: FlattenResult | None = None


def _begin(ctx: Context, request: FlattenRequest) -> FlattenState:
    store = ctx.store(request.image.store)
    output = ctx.policy.check_root(request.output)
    tag = request.image.tag
    top = tag if request.platform is None else resolve(store, tag, request.platform).descriptor
    found = images_behind(ctx, store.path, top)
    pin(store, found.images)
    return FlattenState(
        source=store.path,
        top=found.top,
        output=output,
        form=request.form,
        rootless=request.rootless,
        epoch=request.source_date_epoch,
        warnings=found.warnings,
    )


def _staging(output: Path, work: str) -> Path:
    return output.with_name(staging_name(work))


def _run(ctx: Context, state: FlattenState, image: Resolved) -> FlattenResult:
    output = state.output
    several = len(image_set(ctx, state).images) > 1
    if several:
        output /= platform_of(image).replace("/", "_") + (".tar" if state.form == "tar" else "")
    with _directory(ctx.policy.check_resolved(state.output)) if several else nullcontext():
        mtree, warnings = flatten(
            source_of(ctx, state),
            image,
            ctx.policy.check_resolved(output),
            ctx.policy.check_resolved(_staging(state.output, ctx.work)),
            state.form,
            rootless=state.rootless,
            epoch=state.epoch,
            advanced=ctx.observer.advanced,
        )
    tree = FlatTree(platform=platform_of(image), output=str(output), manifest=image.descriptor.digest, mtree=mtree)
    return FlattenResult(trees=[tree], warnings=warnings)


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Create the directory for several trees, unless it exists; remove it after a failure if it is still empty."""
    try:
        path.mkdir()
    except FileExistsError:
        yield
        return
    except OSError as error:
        raise RequestError(f"directory for the trees cannot be created, {error.strerror}", where=path) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.rmdir()
        raise


def _join(ctx: Context, state: FlattenState, results: dict[str, FlattenResult]) -> FlattenState:
    trees = [tree for result in results.values() for tree in result.trees]
    warnings = dict.fromkeys([*state.warnings, *(text for result in results.values() for text in result.warnings)])
    return state.model_copy(update={"result": FlattenResult(trees=trees, warnings=list(warnings))})


def _clean(ctx: Context, request: FlattenRequest, succeeded: bool) -> None:
    """Remove the staging directory."""
    output = ctx.policy.check_root(request.output)
    with suppress(OSError):
        remove_tree(_staging(output, ctx.work))


FLATTEN = Flow(
    request=FlattenRequest,
    state=FlattenState,
    stages=(image_stage("flatten", FlattenState, FlattenResult, _run, _join),),
    begin=_begin,
    finish=result_of,
    clean=_clean,
    result=FlattenResult,
)
