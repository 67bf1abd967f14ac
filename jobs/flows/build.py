"""The flow ``build``: a directory becomes an image, on top of a base image if one is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import RootfsNotFound
from layerfarm.jobs.flows.base import Context, Flow, Stage, Unit, unit_of, work_directory
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.layer_state import LayeringState
from layerfarm.jobs.flows.layering import layering_stages
from layerfarm.jobs.flows.publish import image_result, publish_image
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, ImageResult
from layerfarm.jobs.image import Resolved, choose_compression, resolve, resolve_walk, tree_of
from layerfarm.jobs.mtree import Entry
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.store import Descriptor, Layout, check_refname


class BuildState(LayeringState):
    """What a build knows between two stages."""

    image: ImageRef
    base_store: Path | None = None
    base: Descriptor | None = None
    """The base's manifest, pinned when the job begins: a tag that moves later is of no matter."""
    manifest: str = ""
    config: str = ""


def _begin(ctx: Context, request: BuildRequest) -> BuildState:
    rootfs = ctx.policy.check_root(request.rootfs)
    if not is_directory(rootfs):
        raise RootfsNotFound("root filesystem does not exist or is not a directory", where=request.rootfs)
    check_refname(request.image.tag)
    store = Layout.open(ctx.policy.check_store(request.image.store))
    base_store = base = None
    if request.base is not None:
        base_store = Layout.open(ctx.policy.check_store(request.base.store))
        base = resolve(base_store, request.base.tag, request.platform)
        for blob in base.blobs:
            base_store.pin(blob)  # its tag may go away while the job runs
    compression = choose_compression(request.layer.compress, base, request.layer.level)
    work_directory(ctx, store.path).create()
    return BuildState(
        store=store.path,
        rootfs=rootfs,
        image=request.image,
        options=request.layer,
        compression=compression,
        mask_paths=request.mask_paths,
        base_store=base_store.path if base_store else None,
        base=_without_annotations(base.descriptor) if base else None,
    )


def _without_annotations(descriptor: Descriptor) -> Descriptor:
    """The image is a new one: what the base's index said of the base (its tag, say) is not true of it."""
    return descriptor.model_copy(update={"annotations": None})


# --- base: its blobs in the image's own store, its tree known ------------------------------------


def _wanted(ctx: Context, state: BuildState) -> Import | None:
    if state.base is None or state.base_store is None:
        return None
    base = resolve_walk(Layout.open(state.base_store), [state.base])
    return Import(state.base_store, state.store, [*base.manifest.layers, base.manifest.config, state.base])


def _base_of(state: BuildState) -> Resolved | None:
    return None if state.base is None else resolve_walk(Layout.open(state.store), [state.base])


def _base_tree(ctx: Context, state: BuildState) -> Iterator[Entry]:
    base = _base_of(state)
    return iter(()) if base is None else tree_of(Layout.open(state.store), base)


# --- publish -------------------------------------------------------------------------------------


def _plan_publish(ctx: Context, state: BuildState) -> list[Unit]:
    return [unit_of(state)]


def _run_publish(ctx: Context, unit: Unit) -> dict[str, Any]:
    state = BuildState.model_validate(unit.params)
    image = publish_image(ctx, state, _base_of(state), state.image.tag, "layerfarm build")
    return {"manifest": image.descriptor.digest, "config": image.manifest.config.digest}


def _join_publish(ctx: Context, state: BuildState, results: list[dict[str, Any]]) -> BuildState:
    (result,) = results
    return state.model_copy(update=result)


def _finish(ctx: Context, state: BuildState) -> ImageResult:
    return image_result(state, str(state.image), state.manifest, state.config)


def _clean(ctx: Context, request: BuildRequest, succeeded: bool) -> None:
    work_directory(ctx, request.image.store).remove()


BUILD = Flow(
    request=BuildRequest,
    state=BuildState,
    stages=(
        import_stage(_wanted),
        *layering_stages(BuildState, _base_tree),
        Stage("publish", _plan_publish, _run_publish, _join_publish, commits=True),
    ),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=ImageResult,
)
