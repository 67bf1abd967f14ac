"""The flow ``flatten``: the trees of images as directories or tars."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows.base import Context, Flow, Model, Stage, State, Unit, staging_name, unit_of
from layerfarm.jobs.flows.transforms import FlattenRequest, FlattenResult, FlatTree
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.image import resolve, resolve_walk
from layerfarm.jobs.relayer.flatten import flatten
from layerfarm.jobs.relayer.indexes import follow, platform_of, read_images
from layerfarm.jobs.relayer.layers import linux_only
from layerfarm.jobs.store import Descriptor, Layout


class Wanted(Model):
    """One tree to be written."""

    store: Path
    image: Descriptor
    output: Path
    staging: Path
    form: Literal["directory", "tar"]
    rootless: bool
    epoch: int | None


class FlattenState(State):
    """What the flow knows between two stages."""

    store: Path
    top: Descriptor
    """What is flattened, as it was when the job began: an image, or an index with all its images."""
    output: Path
    form: Literal["directory", "tar"]
    rootless: bool
    epoch: int | None
    done: list[FlatTree] = []
    warnings: list[str] = []


def _begin(ctx: Context, request: FlattenRequest) -> FlattenState:
    store = Layout.open(ctx.policy.check_store(request.image.store))
    output = ctx.policy.check_root(request.output)
    if request.platform is not None:
        top = resolve(store, request.image.tag, request.platform).descriptor
    else:
        top = read_images(store, request.image.tag).top
    found = follow(store, top)
    images = found.images
    for image in images:
        linux_only(image)
        for blob in image.blobs:
            store.pin(blob)
    if len(images) > 1:
        _make(output)
    return FlattenState(
        store=store.path,
        top=top,
        output=output,
        form=request.form,
        rootless=request.rootless,
        epoch=request.source_date_epoch,
        warnings=found.warnings,
    )


def _staging(output: Path, work: str) -> Path:
    return output.with_name(staging_name(work))


def _make(directory: Path) -> None:
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise RequestError(f"directory for several trees cannot be made, {error.strerror}", where=directory) from error


def _plan(ctx: Context, state: FlattenState) -> list[Unit]:
    images = follow(Layout.open(ctx.policy.check_store(state.store)), state.top).images
    end = ".tar" if state.form == "tar" else ""
    units = []
    for image in images:
        wanted = Wanted(
            store=state.store,
            image=image.descriptor,
            output=state.output if len(images) == 1 else state.output / (platform_of(image).replace("/", "_") + end),
            staging=_staging(state.output, ctx.work),
            form=state.form,
            rootless=state.rootless,
            epoch=state.epoch,
        )
        units.append(unit_of(wanted, nbytes=sum(layer.size for layer in image.manifest.layers)))
    return units


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    wanted = Wanted.model_validate(unit.params)
    store = Layout.open(ctx.policy.check_store(wanted.store))
    output = ctx.policy.check_resolved(wanted.output)
    image = resolve_walk(store, [wanted.image])
    mtree, warnings = flatten(
        store,
        image,
        output,
        ctx.policy.check_resolved(wanted.staging),
        wanted.form,
        rootless=wanted.rootless,
        epoch=wanted.epoch,
        advanced=ctx.observer.advanced,
    )
    tree = FlatTree(platform=platform_of(image), output=str(output), manifest=image.descriptor.digest, mtree=mtree)
    return {"tree": tree.model_dump(), "warnings": warnings}


def _join(ctx: Context, state: FlattenState, results: list[dict[str, Any]]) -> FlattenState:
    return state.model_copy(
        update={
            "done": [FlatTree.model_validate(result["tree"]) for result in results],
            "warnings": list(
                dict.fromkeys([*state.warnings, *(text for result in results for text in result["warnings"])])
            ),
        }
    )


def _finish(ctx: Context, state: FlattenState) -> FlattenResult:
    return FlattenResult(trees=state.done, warnings=state.warnings)


def _clean(ctx: Context, request: FlattenRequest, succeeded: bool) -> None:
    """What was staged; and the directory for several trees, if nothing came into it."""
    output = ctx.policy.check_root(request.output)
    with suppress(OSError):
        remove_tree(_staging(output, ctx.work))
    if not succeeded:
        with suppress(OSError):
            request.output.rmdir()


FLATTEN = Flow(
    request=FlattenRequest,
    state=FlattenState,
    stages=(Stage("flatten", _plan, _run, _join),),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=FlattenResult,
)
