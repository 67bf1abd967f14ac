"""The flow ``unpack``: unpack an image into a runtime bundle."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from layerfarm.jobs.errors import BundleExists, OutsideAllowedRoots
from layerfarm.jobs.flows.base import Context, Flow, State, WorkDirectory, work_directory
from layerfarm.jobs.flows.bundle_place import (
    base_of,
    discard,
    end,
    publish,
    published,
    records_beside,
    refuse_existing,
    remember,
    remove_abandoned,
    stage,
    staged_by,
)
from layerfarm.jobs.flows.layering import id_map
from layerfarm.jobs.flows.requests import UnpackRequest, UnpackResult
from layerfarm.jobs.flows.stages import result_of, single_stage
from layerfarm.jobs.image import UnpackOptions, resolve, resolve_walk, unpack_manifest
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import may_write


class UnpackState(State):
    """State of an unpack, and parameters of its only unit."""

    request: UnpackRequest
    store: Path
    bundle: Path
    walk: list[Descriptor]
    """From the tag to the manifest, pinned when the job begins."""
    bytes: int
    """Compressed size of the layers."""
    result: UnpackResult | None = None


def _begin(ctx: Context, request: UnpackRequest) -> UnpackState:
    store = ctx.store(request.image.store)
    bundle = ctx.policy.check_root(request.bundle)
    work = _records(ctx, store, bundle)
    # A job that begins again, because Redis lost it, may find its own bundle.
    if published(work, bundle) is None:
        _check_place(ctx, bundle)
    resolved = resolve(store, request.image.tag, request.platform)
    if not ctx.fenced:
        remove_abandoned(bundle)
    remember(work, bundle, alone=not ctx.fenced)
    size = sum(layer.size for layer in resolved.manifest.layers)
    return UnpackState(request=request, store=store.path, bundle=bundle, walk=list(resolved.path), bytes=size)


def _check_place(ctx: Context, bundle: Path) -> None:
    refuse_existing(bundle)
    ctx.policy.check_root(base_of(bundle))


def _run(ctx: Context, state: UnpackState) -> UnpackResult:
    """Unpack to a staging directory, then move the bundle to its place.

    A second copy of this unit finds the bundle in place and recognises it as the job's own.
    """
    store = ctx.store(state.store)
    bundle = ctx.policy.check_resolved(state.bundle)
    work = _records(ctx, store, bundle)
    done = published(work, bundle)
    if done is not None:
        return done
    _check_place(ctx, bundle)
    staged = stage(bundle, ctx.work)
    try:
        result = _unpack(ctx, store, staged, state)
        publish(work, staged, bundle, result)
    except BundleExists:
        done = published(work, bundle)
        if done is None:
            raise
        return done
    finally:
        discard(staged)
    return result


def _unpack(ctx: Context, store: Layout, staged: Path, state: UnpackState) -> UnpackResult:
    resolved = resolve_walk(store, state.walk)
    request = state.request
    options = UnpackOptions(
        uid_map=id_map(request.uid_map),
        gid_map=id_map(request.gid_map),
        rootless=request.rootless,
        keep_dirlinks=request.keep_dirlinks,
        volumes=request.volumes,
        advanced=ctx.observer.advanced,
    )
    unpacked = unpack_manifest(store, staged, resolved, options)
    return UnpackResult(
        bundle=str(state.bundle),
        manifest=resolved.descriptor.digest,
        layers=unpacked.layers,
        entries=unpacked.count,
        mtree=unpacked.mtree,
        warnings=unpacked.warnings,
    )


def _records(ctx: Context, store: Layout, bundle: Path) -> WorkDirectory:
    """Return the job's records: the place as it was found, and the bundle that a unit made.

    On a farm they are in the store, where the janitor finds those of a job that Redis lost. Without a farm only this
    process needs them, and the source is not written.
    """
    return work_directory(ctx, store.path) if ctx.fenced and may_write(store) else records_beside(bundle, ctx.work)


def _clean(ctx: Context, request: UnpackRequest, succeeded: bool) -> None:
    bundle = ctx.policy.check_root(request.bundle)
    stagings = []
    for staging in staged_by(bundle, ctx.work):
        with suppress(OutsideAllowedRoots):
            stagings.append(ctx.policy.check_root(staging))
    for work in (records_beside(bundle, ctx.work), work_directory(ctx, request.image.store)):
        end(work, bundle, stagings, succeeded)


UNPACK = Flow(
    request=UnpackRequest,
    state=UnpackState,
    stages=(single_stage("unpack", UnpackState, UnpackResult, _run, nbytes=lambda state: state.bytes),),
    begin=_begin,
    finish=result_of,
    clean=_clean,
    result=UnpackResult,
)
