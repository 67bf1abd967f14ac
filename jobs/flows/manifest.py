"""The flow ``manifest``: the mtree manifest of a directory, hashed in shards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from layerfarm.jobs.errors import MtreeError, MtreeSyntaxError, RequestError, RootfsNotFound
from layerfarm.jobs.flows.base import Context, Flow, Request, Result, WorkBeside, WorkDirectory
from layerfarm.jobs.flows.requests import AbsolutePath
from layerfarm.jobs.flows.stages import result_of, single_stage
from layerfarm.jobs.flows.surveying import TreeState, survey_stages
from layerfarm.jobs.mtree import Entry
from layerfarm.jobs.mtree.fragments import parse_lines
from layerfarm.jobs.paths import is_directory

__all__ = ["ManifestRequest", "ManifestResult"]

HEADER = (
    b"#mtree\n#          tool: layerfarm\n"
    b"#      keywords: type,mode,uid,gid,size,nlink,time,sha256digest,link,device,xattr\n"
)
_CHUNK = 1 << 20


class ManifestRequest(Request):
    """Write the mtree manifest of a directory to a file outside it.

    Full-path lines in mtree order with every keyword, times to the nanosecond: the same bytes for any number of
    shards. bsdtar, go-mtree and layerfarm read them; unlike umoci's form, it omits nothing.
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


class ManifestState(TreeState):
    """State of a manifest job."""

    output: Path
    result: ManifestResult | None = None


def read_tree_file(stream: BinaryIO) -> Iterator[Entry]:
    """Yield the entries of a file that this flow wrote; several times faster than reading any mtree dialect.

    Raises:
        MtreeSyntaxError: it is not one.
    """
    if stream.read(len(HEADER)) != HEADER:
        raise MtreeSyntaxError("not a manifest written by layerfarm mtree")
    return parse_lines(stream)


def _begin(ctx: Context, request: ManifestRequest) -> ManifestState:
    rootfs = ctx.policy.check_root(request.rootfs)
    output = ctx.policy.check_root(request.output)
    if not is_directory(rootfs):
        raise RootfsNotFound("directory does not exist or is not one", where=request.rootfs)
    if output.is_relative_to(rootfs):
        raise RequestError("manifest would be written into the directory that it describes", where=request.output)
    if is_directory(output) or not is_directory(output.parent):
        raise RequestError("manifest cannot be written here", where=request.output)
    WorkBeside(output, ctx.work).create()
    return ManifestState(rootfs=rootfs, output=output)


def _work(ctx: Context, output: Path) -> WorkDirectory:
    return WorkBeside(ctx.policy.check_resolved(output), ctx.work)


def _write(ctx: Context, state: ManifestState) -> ManifestResult:
    """Join the fragments: they are in order of one walk, and their lines are stateless."""
    work = _work(ctx, state.output)
    work.create()

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
        output=str(state.output), entries=state.surveyed.entries, size=written.size, mtree=f"sha256:{written.sha256}"
    )


def _clean(ctx: Context, request: ManifestRequest, succeeded: bool) -> None:
    WorkBeside(ctx.policy.check_root(request.output), ctx.work).remove()


MANIFEST = Flow(
    request=ManifestRequest,
    state=ManifestState,
    stages=(
        *survey_stages(ManifestState, lambda state: state.output, _work),
        single_stage("write", ManifestState, ManifestResult, _write, commits=True),
    ),
    begin=_begin,
    finish=result_of,
    clean=_clean,
    result=ManifestResult,
)
