"""The flow ``manifest``: a directory's mtree manifest, hashed in shards, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from layerfarm.jobs.errors import MtreeError, MtreeSyntaxError, RequestError, RootfsNotFound
from layerfarm.jobs.flows.base import (
    Context,
    FileRef,
    Flow,
    Model,
    Request,
    Result,
    Stage,
    State,
    Unit,
    WorkBeside,
    WorkDirectory,
    unit_of,
)
from layerfarm.jobs.flows.requests import AbsolutePath
from layerfarm.jobs.mtree import Entry, Shard, hash_shard, plan_shards, walk_tree
from layerfarm.jobs.mtree.fragments import read_fragment
from layerfarm.jobs.paths import is_directory

HEADER = (
    b"#mtree\n#          tool: layerfarm\n"
    b"#      keywords: type,mode,uid,gid,size,nlink,time,sha256digest,link,device,xattr\n"
)
_CHUNK = 1 << 20


class ManifestRequest(Request):
    """Write the mtree manifest of a directory to a file, which must not lie in it.

    Full-path lines in mtree order with every keyword, times to the nanosecond: the same bytes however many
    shards. bsdtar, go-mtree and layerfarm read them; nothing is left out, as umoci's form does.
    """

    kind = "manifest"

    rootfs: AbsolutePath
    output: AbsolutePath


class ManifestResult(Result):
    """A written manifest."""

    output: str
    entries: int
    size: int
    """Bytes of the file."""
    mtree: str
    """``sha256:`` digest of the file."""
    warnings: list[str] = []


class ManifestState(State):
    """What a manifest job knows between two stages."""

    rootfs: Path
    output: Path
    walk: FileRef | None = None
    entries: int = 0
    fragments: list[FileRef] = []
    result: ManifestResult | None = None


def read_tree_file(stream: BinaryIO) -> Iterator[Entry]:
    """The entries of a file that this flow wrote; several times faster than reading any mtree dialect.

    Raises:
        MtreeSyntaxError: it is not one.
    """
    if stream.read(len(HEADER)) != HEADER:
        raise MtreeSyntaxError("not a manifest written by layerfarm mtree")
    return read_fragment(stream)


def _begin(ctx: Context, request: ManifestRequest) -> ManifestState:
    rootfs = ctx.policy.check_root(request.rootfs)
    output = ctx.policy.check_root(request.output)
    if not is_directory(rootfs):
        raise RootfsNotFound("directory does not exist or is not one", where=request.rootfs)
    if output.is_relative_to(rootfs):
        raise RequestError("the manifest would lie in the directory that it is of", where=request.output)
    if is_directory(output) or not is_directory(output.parent):
        raise RequestError("the manifest cannot be written here", where=request.output)
    WorkBeside(output, ctx.work).create()
    return ManifestState(rootfs=rootfs, output=output)


# --- survey --------------------------------------------------------------------------------------


def _plan_survey(ctx: Context, state: ManifestState) -> list[Unit]:
    return [unit_of(state)]


def _run_survey(ctx: Context, unit: Unit) -> dict[str, Any]:
    state = ManifestState.model_validate(unit.params)
    rootfs, work = _checked(ctx, state.rootfs, state.output)
    entries = 0

    def write(path: Path) -> None:
        nonlocal entries
        with path.open("w+b") as out:
            entries = walk_tree(rootfs, out).entries

    return {"walk": work.publish("walk", write).model_dump(), "entries": entries}


def _join_survey(ctx: Context, state: ManifestState, results: list[dict[str, Any]]) -> ManifestState:
    (result,) = results
    return state.model_copy(update={"walk": FileRef.model_validate(result["walk"]), "entries": result["entries"]})


# --- hash ----------------------------------------------------------------------------------------


class _HashUnit(Model):
    rootfs: Path
    output: Path
    walk: FileRef
    shard: Shard


def _plan_hash(ctx: Context, state: ManifestState) -> list[Unit]:
    assert state.walk is not None
    walk_file = WorkBeside(state.output, ctx.work).open(state.walk)
    return [
        unit_of(_HashUnit(rootfs=state.rootfs, output=state.output, walk=state.walk, shard=shard), nbytes=shard.bytes)
        for shard in plan_shards(walk_file, ctx.policy.shards)
    ]


def _run_hash(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _HashUnit.model_validate(unit.params)
    rootfs, work = _checked(ctx, params.rootfs, params.output)
    walk_file = work.open(params.walk)

    def write(path: Path) -> None:
        with path.open("wb") as out:
            hash_shard(rootfs, walk_file, params.shard, out, ctx.observer.advanced)

    return work.publish(f"fragment-{params.shard.offset}", write).model_dump()


def _join_hash(ctx: Context, state: ManifestState, results: list[dict[str, Any]]) -> ManifestState:
    return state.model_copy(update={"fragments": [FileRef.model_validate(result) for result in results]})


# --- write ---------------------------------------------------------------------------------------


def _plan_write(ctx: Context, state: ManifestState) -> list[Unit]:
    return [unit_of(state)]


def _run_write(ctx: Context, unit: Unit) -> dict[str, Any]:
    """Shards are cut from one walk in order, and their lines are stateless: they only have to be joined."""
    state = ManifestState.model_validate(unit.params)
    _, work = _checked(ctx, state.rootfs, state.output)

    def write(path: Path) -> None:
        with path.open("wb") as out:
            out.write(HEADER)
            for fragment in state.fragments:
                with work.open(fragment).open("rb") as stream:
                    shutil.copyfileobj(stream, out, _CHUNK)

    written = work.publish(f"manifest-{os.urandom(4).hex()}", write)
    try:
        (work.path / written.path).replace(state.output)
    except OSError as error:
        raise MtreeError(f"manifest cannot be written, {error.strerror}", where=state.output) from error
    return ManifestResult(
        output=str(state.output), entries=state.entries, size=written.size, mtree=f"sha256:{written.sha256}"
    ).model_dump()


def _join_write(ctx: Context, state: ManifestState, results: list[dict[str, Any]]) -> ManifestState:
    (result,) = results
    return state.model_copy(update={"result": ManifestResult.model_validate(result)})


def _finish(ctx: Context, state: ManifestState) -> ManifestResult:
    assert state.result is not None
    return state.result


def _clean(ctx: Context, request: ManifestRequest, succeeded: bool) -> None:
    WorkBeside(ctx.policy.check_root(request.output), ctx.work).remove()


def _checked(ctx: Context, rootfs: Path, output: Path) -> tuple[Path, WorkDirectory]:
    work = WorkBeside(ctx.policy.check_resolved(output), ctx.work)
    work.create()
    return ctx.policy.check_resolved(rootfs), work


MANIFEST = Flow(
    request=ManifestRequest,
    state=ManifestState,
    stages=(
        Stage("survey", _plan_survey, _run_survey, _join_survey),
        Stage("hash", _plan_hash, _run_hash, _join_hash),
        Stage("write", _plan_write, _run_write, _join_write, commits=True),
    ),
    begin=_begin,
    finish=_finish,
    clean=_clean,
    result=ManifestResult,
)
