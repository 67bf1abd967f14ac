"""The flow ``unpack``: an image becomes a runtime bundle."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import BundleExists
from layerfarm.jobs.flows.base import (
    Context,
    Flow,
    Stage,
    State,
    Unit,
    WorkBeside,
    WorkDirectory,
    unit_of,
    work_directory,
)
from layerfarm.jobs.flows.layer_state import id_map
from layerfarm.jobs.flows.requests import IdMapping, UnpackRequest, UnpackResult
from layerfarm.jobs.image import ROOTFS_NAME, UnpackOptions, resolve, resolve_walk, unpack_manifest
from layerfarm.jobs.image.remove import remove_tree
from layerfarm.jobs.image.runtime_config import Volumes
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.rootfs import open_file
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.usercache import may_write

_PUBLISHED = "published"


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
    # A job that begins once more, because Redis forgot that it had, may find the bundle that it made.
    if _published(_records(ctx, store, bundle), bundle) is None:
        _refuse_existing(bundle)
    resolved = resolve(store, request.image.tag, request.platform)
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
    """Unpack beside the bundle's place, then move it there in one step.

    A copy of this unit that comes second finds the bundle in place. It knows it for the job's own by the
    inode of the rootfs, which the first copy wrote down before it moved anything.
    """
    state = UnpackState.model_validate(unit.params)
    store = Layout.open(ctx.policy.check_store(state.store))
    bundle = ctx.policy.check_resolved(state.bundle)
    work = _records(ctx, store, bundle)
    done = _published(work, bundle)
    if done is not None:
        return done
    _refuse_existing(bundle)
    staged = _staged(bundle, ctx.work)
    try:
        result = _unpack(ctx, store, staged, state)
        work.create()
        _write_down(work, staged, bundle, result)
        _move(staged, bundle)
    finally:
        remove_tree(staged)
        # Of a job that Redis has forgotten nobody else would; another copy of this unit keeps what it uses.
        with suppress(OSError):
            staged.parent.rmdir()
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


def _staged(bundle: Path, job_id: str) -> Path:
    """A new directory below the job's own; a copy of this unit that ends just now may take the latter away."""
    parent = WorkBeside(bundle, job_id)
    while True:
        parent.create()
        staged = parent.path / os.urandom(4).hex()
        try:
            staged.mkdir(mode=0o700)
        except FileNotFoundError:
            continue
        return staged


def _records(ctx: Context, store: Layout, bundle: Path) -> WorkDirectory:
    """Where a unit writes down which bundle it made, for another copy of it.

    On a farm that is the store, where the janitor finds what a job that Redis forgot has left. Without one nobody but
    this process will look, and the source is only read.
    """
    return work_directory(ctx, store.path) if ctx.fenced and may_write(store) else WorkBeside(bundle, ctx.work)


def _write_down(work: WorkDirectory, staged: Path, bundle: Path, result: dict[str, Any]) -> None:
    record = {
        "inode": _identity(staged),
        "result": result,
        "names": sorted(os.listdir(staged)),
        "existed": bundle.exists(),
    }

    def write(path: Path) -> None:
        path.write_text(json.dumps(record))

    work.publish(f"{_PUBLISHED}-{staged.name}", write)


def _published(work: WorkDirectory, bundle: Path) -> dict[str, Any] | None:
    """The result of an earlier copy of this unit, if the bundle in place is the one it made."""
    record = _record_of(work, bundle)
    if record is None:
        return None
    result: dict[str, Any] = record["result"]
    return result


def _withdraw(work: WorkDirectory, bundle: Path) -> None:
    """Remove the bundle, if it is the job's own: the job ended otherwise than well after it was in place.

    The rootfs goes last, because the bundle is known by it should this be interrupted.
    """
    record = _record_of(work, bundle)
    if record is None:
        return
    for name in sorted(record["names"], key=lambda name: name == ROOTFS_NAME):
        path = bundle / Path(name).name
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    if not record["existed"]:
        with suppress(OSError):
            bundle.rmdir()


def _record_of(work: WorkDirectory, bundle: Path) -> dict[str, Any] | None:
    """What a unit wrote down of the bundle in place; None: no unit of this job made it."""
    try:
        identity = _identity(bundle)
    except FileNotFoundError:
        return None
    for path in work.path.glob(f"{_PUBLISHED}-*"):
        with open_file(path) as stream:
            record: dict[str, Any] = json.load(stream)
        if record["inode"] == identity:
            return record
    return None


def _identity(bundle: Path) -> list[int]:
    found = (bundle / ROOTFS_NAME).lstat()
    return [found.st_dev, found.st_ino]


def _move(staged: Path, bundle: Path) -> None:
    """Give the finished bundle its place; a directory that is there already keeps what it holds.

    Raises:
        BundleExists: another bundle came there in the meantime.
    """
    _refuse_existing(bundle)
    if not bundle.exists() or not any(bundle.iterdir()):
        staged.rename(bundle)
        return
    # The rootfs first: its presence is what makes others refuse the place.
    for name in sorted(os.listdir(staged), key=lambda name: name != ROOTFS_NAME):
        (staged / name).rename(bundle / name)


def _refuse_existing(bundle: Path) -> None:
    for name in (ROOTFS_NAME, "config.json"):
        if os.path.lexists(bundle / name):
            raise BundleExists("the bundle already holds a " + name, where=bundle, hint="choose another directory")
    if not is_directory(bundle.parent):
        raise BundleExists("the directory that is to hold the bundle does not exist", where=bundle.parent)


def _join(ctx: Context, state: UnpackState, results: list[dict[str, Any]]) -> UnpackState:
    (result,) = results
    return state.model_copy(update={"result": UnpackResult.model_validate(result)})


def _finish(ctx: Context, state: UnpackState) -> UnpackResult:
    assert state.result is not None
    return state.result


def _clean(ctx: Context, request: UnpackRequest, succeeded: bool) -> None:
    bundle = ctx.policy.check_root(request.bundle)
    _end(WorkBeside(bundle, ctx.work), bundle, succeeded)
    _end(work_directory(ctx, request.image.store), bundle, succeeded)


def _end(work: WorkDirectory, bundle: Path, succeeded: bool) -> None:
    if not succeeded:
        _withdraw(work, bundle)
    work.remove()


UNPACK = Flow(
    request=UnpackRequest,
    state=UnpackState,
    stages=(Stage("unpack", _plan, _run, _join),),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=UnpackResult,
)
