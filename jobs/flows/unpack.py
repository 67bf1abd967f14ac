"""The flow ``unpack``: an image becomes a runtime bundle."""

from __future__ import annotations

from collections.abc import Iterator
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
from layerfarm.jobs.flows.requests import IdMapping, UnpackRequest, UnpackResult
from layerfarm.jobs.image import UnpackOptions, resolve, resolve_walk, unpack_manifest
from layerfarm.jobs.image.runtime_config import Volumes
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import may_write


class UnpackState(State):
    """What an unpack knows between its stages; also what its only unit is given."""

    store: Path
    bundle: Path
    walk: list[Descriptor]
    """From the tag to the manifest, pinned when the job begins."""
    uid_map: list[IdMapping]
    gid_map: list[IdMapping]
    rootless: bool
    keep_dirlinks: bool
    volumes: Volumes
    result: UnpackResult | None = None


def _begin(ctx: Context, request: UnpackRequest) -> UnpackState:
    store = Layout.open(ctx.policy.check_store(request.image.store))
    bundle = ctx.policy.check_root(request.bundle)
    work = _records(ctx, store, bundle)
    # A job that begins once more, because Redis forgot that it had, may find the bundle that it made.
    if published(work, bundle) is None:
        refuse_existing(bundle)
        ctx.policy.check_root(base_of(bundle))
    resolved = resolve(store, request.image.tag, request.platform)
    remember(work, bundle)
    return UnpackState(
        store=store.path,
        bundle=bundle,
        walk=list(resolved.path),
        uid_map=request.uid_map,
        gid_map=request.gid_map,
        rootless=request.rootless,
        keep_dirlinks=request.keep_dirlinks,
        volumes=request.volumes,
    )


def _plan(ctx: Context, state: UnpackState) -> list[Unit]:
    layers = resolve_walk(Layout.open(state.store), state.walk).manifest.layers
    return [unit_of(state, nbytes=sum(layer.size for layer in layers))]


def _run(ctx: Context, unit: Unit) -> dict[str, Any]:
    """Unpack to a staging directory, then move the bundle to its place.

    A copy of this unit that comes second finds the bundle in place, and knows it for the job's own.
    """
    state = UnpackState.model_validate(unit.params)
    store = Layout.open(ctx.policy.check_store(state.store))
    bundle = ctx.policy.check_resolved(state.bundle)
    work = _records(ctx, store, bundle)
    done = published(work, bundle)
    if done is not None:
        return done
    refuse_existing(bundle)
    ctx.policy.check_root(base_of(bundle))
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
    options = UnpackOptions(
        uid_map=id_map(state.uid_map),
        gid_map=id_map(state.gid_map),
        rootless=state.rootless,
        keep_dirlinks=state.keep_dirlinks,
        volumes=state.volumes,
        advanced=ctx.observer.advanced,
    )
    unpacked = unpack_manifest(store, staged, resolved, options)
    return UnpackResult(
        bundle=str(state.bundle),
        manifest=resolved.descriptor.digest,
        layers=unpacked.layers,
        entries=unpacked.count,
        mtree=unpacked.mtree,
        warnings=list(unpacked.warnings),
    ).model_dump()


def _records(ctx: Context, store: Layout, bundle: Path) -> WorkDirectory:
    """Where it is written down how the place was found, and which bundle a unit made.

    On a farm that is the store, where the janitor finds what a job that Redis forgot has left. Without one nobody but
    this process will look, and the source is only read.
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
    for work in (records_beside(bundle, ctx.work), work_directory(ctx, request.image.store)):
        end(work, bundle, list(_stagings(ctx, bundle)), succeeded)


def _stagings(ctx: Context, bundle: Path) -> Iterator[Path]:
    for staging in staged_by(bundle, ctx.work):
        try:
            yield ctx.policy.check_root(staging)
        except OutsideAllowedRoots:
            continue


UNPACK = Flow(
    request=UnpackRequest,
    state=UnpackState,
    stages=(Stage("unpack", _plan, _run, _join),),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=UnpackResult,
)
