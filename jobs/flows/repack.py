"""The flow ``repack``: pack the changes in a bundle as a layer on top of the image that it was unpacked from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from layerfarm.jobs.flows.base import Context, Flow, work_directory
from layerfarm.jobs.flows.layering import LayeringState, layering_stages, remove_work, tree_digest
from layerfarm.jobs.flows.requests import IdMapping, ImageResult, RepackRequest
from layerfarm.jobs.flows.stages import result_of
from layerfarm.jobs.flows.surveying import Recorded
from layerfarm.jobs.image import Resolved, resolve_walk
from layerfarm.jobs.image.bundle import Bundle, BundleIdMapping, open_baseline
from layerfarm.jobs.image.documents import masked_paths
from layerfarm.jobs.image.pack import choose_compression
from layerfarm.jobs.mtree import Digests, Entry, Walk, write_stat_cache
from layerfarm.jobs.store import Descriptor, Layout, check_refname


class RepackState(LayeringState):
    """State of a repack."""

    bundle: Path
    walk_to_base: list[Descriptor]
    """From index.json to the manifest that the bundle was unpacked from."""


def _begin(ctx: Context, request: RepackRequest) -> RepackState:
    bundle = Bundle.open(ctx.policy.check_root(request.bundle))
    check_refname(request.image.tag)
    store = ctx.store(request.image.store)
    base = resolve_walk(store, bundle.walk)
    for blob in base.blobs:
        store.claim(blob)  # its tag may be removed, and a garbage collector running
    maps = bundle.meta.map_options
    compression = choose_compression(request.layer.compress, base, request.layer.level, request.layer.prefetch)
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
        recorded=Recorded(
            manifest=bundle.mtree, extra=bundle.extra, cache=bundle.stat_cache, use_cache=request.stat_cache
        ),
        refresh=request.refresh_bundle,
    )


def _rows(rows: list[BundleIdMapping] | None) -> list[IdMapping]:
    return [IdMapping(container=row.container, host=row.host, size=row.size) for row in rows or [] if row.size]


def _old_tree(ctx: Context, state: RepackState) -> Iterator[Entry]:
    """Yield the tree as it was unpacked, from the bundle's own manifest."""
    ctx.policy.check_resolved(state.bundle)
    assert state.recorded is not None
    return open_baseline(state.recorded.manifest, state.recorded.extra)


def _base_of(state: RepackState) -> Resolved:
    return resolve_walk(Layout.open(state.store), state.walk_to_base)


def _refresh(ctx: Context, state: RepackState, image: Resolved) -> None:
    """Make the bundle one of the new image, if requested."""
    if not state.refresh:
        return
    bundle = Bundle.open(ctx.policy.check_resolved(state.bundle))
    survey = state.surveyed
    walk, tree = survey.walk, state.exact_tree
    if walk is None or tree is None:  # nothing was touched: the files of the bundle are still valid, under any name
        bundle.refresh(image, bundle.mtree, bundle.extra, bundle.stat_cache)
        return
    work = work_directory(ctx, state.store)
    digests = Digests(walk.sha256, tree.manifest.sha256, tree.extra.sha256, tree_digest(state))

    def write(path: Path) -> None:
        with path.open("wb") as out:
            write_stat_cache(out, work.open(walk), Walk(survey.entries, survey.racy), digests)

    stat_cache = work.open(work.publish("stat", write))
    bundle.refresh(image, work.open(tree.manifest), work.open(tree.extra), stat_cache)


REPACK = Flow(
    request=RepackRequest,
    state=RepackState,
    stages=layering_stages(RepackState, _old_tree, _base_of, "layerfarm repack", _refresh),
    begin=_begin,
    finish=result_of,
    clean=remove_work,
    result=ImageResult,
)
