"""The flow ``build``: pack a directory as an image, on top of a base image if one is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from layerfarm.jobs.errors import RootfsNotFound
from layerfarm.jobs.flows.base import Context, Flow, work_directory
from layerfarm.jobs.flows.importing import Import, import_stage
from layerfarm.jobs.flows.layering import LayeringState, layering_stages, remove_work
from layerfarm.jobs.flows.requests import BuildRequest, ImageResult
from layerfarm.jobs.flows.stages import result_of
from layerfarm.jobs.image import Resolved, resolve, resolve_walk, tree_of
from layerfarm.jobs.image.pack import choose_compression
from layerfarm.jobs.mtree import Entry
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.store import Descriptor, Layout, check_refname


class BuildState(LayeringState):
    """State of a build."""

    base_store: Path | None = None
    base: Descriptor | None = None
    """The base's manifest, pinned when the job begins: later tag moves are ignored."""


def _begin(ctx: Context, request: BuildRequest) -> BuildState:
    rootfs = ctx.policy.check_root(request.rootfs)
    if not is_directory(rootfs):
        raise RootfsNotFound("root filesystem does not exist or is not a directory", where=request.rootfs)
    check_refname(request.image.tag)
    store = ctx.store(request.image.store)
    base_store = base = None
    if request.base is not None:
        base_store = ctx.store(request.base.store)
        base = resolve(base_store, request.base.tag, request.platform)
        for blob in base.blobs:
            base_store.pin(blob)  # its tag may be removed while the job runs
    compression = choose_compression(request.layer.compress, base, request.layer.level, request.layer.prefetch)
    work_directory(ctx, store.path).create()
    return BuildState(
        store=store.path,
        rootfs=rootfs,
        image=request.image,
        options=request.layer,
        compression=compression,
        mask_paths=request.mask_paths,
        base_store=base_store.path if base_store else None,
        # Annotations in the base's index, such as its tag, do not apply to the new image.
        base=base.descriptor.model_copy(update={"annotations": None}) if base else None,
    )


def _wanted(ctx: Context, state: BuildState) -> Import | None:
    """Return the base's blobs, in the image's own store."""
    if state.base is None or state.base_store is None:
        return None
    base = resolve_walk(Layout.open(state.base_store), [state.base])
    return Import(state.base_store, state.store, [*base.manifest.layers, base.manifest.config, state.base])


def _base_of(state: BuildState) -> Resolved | None:
    return None if state.base is None else resolve_walk(Layout.open(state.store), [state.base])


def _base_tree(ctx: Context, state: BuildState) -> Iterator[Entry]:
    base = _base_of(state)
    return iter(()) if base is None else tree_of(Layout.open(state.store), base)


BUILD = Flow(
    request=BuildRequest,
    state=BuildState,
    stages=(import_stage(_wanted), *layering_stages(BuildState, _base_tree, _base_of, "layerfarm build")),
    begin=_begin,
    finish=result_of,
    clean=remove_work,
    result=ImageResult,
)
