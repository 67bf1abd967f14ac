"""The flow ``unpack``: unpack an image into a runtime bundle."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import BundleExists, OutsideAllowedRoots
from layerfarm.jobs.flows.base import Context, Flow, Stage, State, Unit, WorkDirectory, unit_of, work_directory
from layerfarm.jobs.flows.bundle_place import (
    base_of,
    discard,
    end,
    publish,
    published,
    records_beside,
    refuse_existing,
    remember,
    stage,
    staged_by,
)
from layerfarm.jobs.flows.layering import id_map
from layerfarm.jobs.flows.requests import UnpackRequest, UnpackResult
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
    result: UnpackResult | None = None


def _begin(ctx: Context, request: UnpackRequest) -> UnpackState:
    store = Layout.open(ctx.policy.check_store(request.image.store))
    bundle = ctx.policy.check_root(request.bundle)
    work = _records(ctx, store, bundle)
    # A job that begins again, because Redis lost it, may find the bundle that it made.
    if published(work, bundle) is None:
        _check_place(ctx, bundle)
    resolved = resolve(store, request.image.tag, request.platform)
    remember(work, bundle)
    return UnpackState(request=request, store=store.path, bundle=bundle, walk=list(resolved.path))


def _check_place(ctx: Context, bundle: Path) -> None:
    refuse_existing(bundle)
    ctx.policy.check_root(base_of(bundle))


def _plan(ctx: Context, state: UnpackState) -> list[Unit]:
    layers = resolve_walk(Layout.open(state.store), state.walk).manifest.layers
    return [unit_of(state, nbytes=sum(layer.size for layer in layers))]


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    """Unpack to a staging directory, then move the bundle to its place.

    A second copy of this unit finds the bundle in place and recognises it as the job's own.
    """
    state = UnpackState.model_validate(unit.params)
    store = Layout.open(ctx.policy.check_store(state.store))
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


def _unpack(ctx: Context, store: Layout, staged: Path, state: UnpackState) -> dict[str, Any]:
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
    ).model_dump()


def _records(ctx: Context, store: Layout, bundle: Path) -> WorkDirectory:
    """The job's records: the place as it was found, and the bundle that a unit made.

    On a farm they are in the store, where the janitor finds those of a job that Redis lost. Without a farm only this
    process needs them, and the source is only read.
    """
    return work_directory(ctx, store.path) if ctx.fenced and may_write(store) else records_beside(bundle, ctx.work)


def _join(ctx: Context, state: UnpackState, results: list[dict[str, Any]]) -> UnpackState:
    (result,) = results
    return state.model_copy(update={"result": UnpackResult.model_validate(result)})


def _finish(ctx: Context, state: UnpackState) -> UnpackResult:
    assert state.result is not None
    return state.result


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
    stages=(Stage("unpack", _plan, _run, _join),),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=UnpackResult,
)
