"""The flow ``flatten``: the trees of images as directories or tars."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from layerfarm.jobs.catalog.flatten import flatten
from layerfarm.jobs.catalog.indexes import platform_of, read_images
from layerfarm.jobs.catalog.squash import linux_only
from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows.base import Context, Flow, Model, Stage, State, Unit, unit_of
from layerfarm.jobs.flows.transforms import FlattenRequest, FlattenResult, FlatTree
from layerfarm.jobs.image import resolve, resolve_walk
from layerfarm.jobs.image.remove import remove_tree
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

    trees: list[Wanted]
    done: list[FlatTree] = []
    warnings: list[str] = []


def _begin(ctx: Context, request: FlattenRequest) -> FlattenState:
    store = Layout.open(ctx.policy.check_store(request.image.store))
    output = ctx.policy.check_root(request.output)
    if request.platform is not None:
        images, warnings = [resolve(store, request.image.tag, request.platform)], []
    else:
        found = read_images(store, request.image.tag)
        images, warnings = list(found.images), found.warnings
    for image in images:
        linux_only(image)
        for blob in image.blobs:
            store.pin(blob)
    if len(images) > 1:
        _make(output)
    end = ".tar" if request.form == "tar" else ""
    trees = [
        Wanted(
            store=store.path,
            image=image.descriptor,
            output=output if len(images) == 1 else output / (platform_of(image).replace("/", "_") + end),
            staging=_staging(output, ctx.work),
            form=request.form,
            rootless=request.rootless,
            epoch=request.source_date_epoch,
        )
        for image in images
    ]
    return FlattenState(trees=trees, warnings=warnings)


def _staging(output: Path, job_id: str) -> Path:
    # Not the output's name: that may have all the bytes that a name can have.
    return output.with_name(f".layerfarm-{job_id}")


def _make(directory: Path) -> None:
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise RequestError(f"directory for several trees cannot be made, {error.strerror}", where=directory) from error


def _plan(ctx: Context, state: FlattenState) -> list[Unit]:
    return [
        unit_of(
            wanted,
            nbytes=sum(layer.size for layer in resolve_walk(Layout.open(wanted.store), [wanted.image]).manifest.layers),
        )
        for wanted in state.trees
    ]


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
