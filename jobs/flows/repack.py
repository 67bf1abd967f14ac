"""The flow ``repack``: what changed in a bundle becomes a layer on top of the image it came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerfarm.jobs.flows.base import Context, Flow, Stage, Unit, unit_of, work_directory
from layerfarm.jobs.flows.layer_state import LayeringState
from layerfarm.jobs.flows.layering import layering_stages
from layerfarm.jobs.flows.publish import image_result, publish_image
from layerfarm.jobs.flows.requests import IdMapping, ImageRef, ImageResult, RepackRequest
from layerfarm.jobs.flows.survey import Known
from layerfarm.jobs.image import (
    Bundle,
    Resolved,
    choose_compression,
    masked_paths,
    open_baseline,
    refresh_bundle,
    resolve_walk,
)
from layerfarm.jobs.image.bundle import BundleIdMapping
from layerfarm.jobs.mtree import Entry, Walk, write_stat_cache
from layerfarm.jobs.store import Descriptor, Layout, check_refname


class RepackState(LayeringState):
    """What a repack knows between two stages."""

    image: ImageRef
    bundle: Path
    walk_to_base: list[Descriptor]
    """From index.json to the manifest that the bundle was unpacked from."""
    refresh: bool
    manifest: str = ""
    config: str = ""


def _begin(ctx: Context, request: RepackRequest) -> RepackState:
    bundle = Bundle.open(ctx.policy.check_root(request.bundle))
    check_refname(request.image.tag)
    store = Layout.open(ctx.policy.check_store(request.image.store))
    base = resolve_walk(store, bundle.walk)
    for blob in base.blobs:
        store.claim(blob)  # its tag may be gone already, and a garbage collector on its way
    maps = bundle.meta.map_options
    compression = choose_compression(request.layer.compress, base, request.layer.level)
    work_directory(ctx, store.path).create()
    return RepackState(
        store=store.path,
        rootfs=bundle.rootfs,
        image=request.image,
        options=request.layer,
        compression=compression,
        mask_paths=masked_paths(base.config, request.mask_paths, request.mask_volumes),
        uid_map=_rows(maps.uid_mappings),
        gid_map=_rows(maps.gid_mappings),
        rootless=maps.rootless,
        bundle=bundle.path,
        walk_to_base=bundle.walk,
        known=Known(manifest=bundle.mtree, extra=bundle.extra, cache=bundle.stat_cache, use_cache=request.stat_cache),
        exact=request.refresh_bundle,
        refresh=request.refresh_bundle,
    )


def _rows(rows: list[BundleIdMapping] | None) -> list[IdMapping]:
    return [IdMapping(container=row.container, host=row.host, size=row.size) for row in rows or [] if row.size]


def _base_tree(ctx: Context, state: RepackState) -> Iterator[Entry]:
    """The tree as it was unpacked, from the bundle's own manifest."""
    ctx.policy.check_resolved(state.bundle)
    assert state.known is not None
    return open_baseline(state.known.manifest, state.known.extra)


def _base_of(state: RepackState) -> Resolved:
    return resolve_walk(Layout.open(state.store), state.walk_to_base)


def _plan_publish(ctx: Context, state: RepackState) -> list[Unit]:
    return [unit_of(state)]


def _run_publish(ctx: Context, unit: Unit) -> dict[str, Any]:
    state = RepackState.model_validate(unit.params)
    image = publish_image(ctx, state, _base_of(state), state.image.tag, "layerfarm repack")
    if state.refresh:
        _refresh(ctx, state, image)
    return {"manifest": image.descriptor.digest, "config": image.manifest.config.digest}


def _refresh(ctx: Context, state: RepackState, image: Resolved) -> None:
    bundle = Bundle.open(ctx.policy.check_resolved(state.bundle))
    work = work_directory(ctx, state.store)
    survey, tree = state.survey, state.exact_tree
    assert survey is not None
    if tree is not None:
        manifest, extra = work.open(tree.manifest), work.open(tree.extra)
    else:  # nothing was touched: what the bundle says, under whichever name, is still true
        manifest, extra = bundle.mtree, bundle.extra
    walk = Walk(survey.entries, survey.racy)

    def write(path: Path) -> None:
        with path.open("wb") as out:
            write_stat_cache(out, work.open(survey.walk), walk, manifest, extra, state.tree_digest)

    refresh_bundle(bundle, image, manifest, extra, work.open(work.publish("stat", write)))


def _join_publish(ctx: Context, state: RepackState, results: list[dict[str, Any]]) -> RepackState:
    (result,) = results
    return state.model_copy(update=result)


def _finish(ctx: Context, state: RepackState) -> ImageResult:
    return image_result(state, str(state.image), state.manifest, state.config)


def _clean(ctx: Context, request: RepackRequest, succeeded: bool) -> None:
    work_directory(ctx, request.image.store).remove()


REPACK = Flow(
    request=RepackRequest,
    state=RepackState,
    stages=(
        *layering_stages(RepackState, _base_tree),
        Stage("publish", _plan_publish, _run_publish, _join_publish, commits=True),
    ),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=ImageResult,
)
