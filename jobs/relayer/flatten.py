"""Write the tree of an image as a directory or as one plain tar."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from layerfarm.jobs.errors import RequestError, TransformError
from layerfarm.jobs.fs import open_file, own_directory
from layerfarm.jobs.fs.names import rename
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.image import Resolved, tree_digest
from layerfarm.jobs.image.layers import Advanced, unheard
from layerfarm.jobs.image.trees import stack_of
from layerfarm.jobs.image.unpack import UnpackOptions, extracted
from layerfarm.jobs.layer.merge import MergeOptions, merge_layers
from layerfarm.jobs.layer.stack import Stack, read_members
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.relayer.equivalence import EXACT, Tolerance
from layerfarm.jobs.relayer.layers import opener
from layerfarm.jobs.relayer.proof import compare
from layerfarm.jobs.store import Layout

Form = Literal["directory", "tar"]


def flatten(
    layout: Layout,
    image: Resolved,
    output: Path,
    staging: Path,
    form: Form,
    *,
    rootless: bool = False,
    epoch: int | None = None,
    advanced: Advanced = unheard,
) -> tuple[str, list[str]]:
    """Write the tree of ``image`` to ``output``, which must not exist: whole, or not at all.

    It is written in the directory ``staging``, on the same filesystem, which the caller removes at the end. A
    second call with the same ``staging`` returns the result of the first. A tar is read back and compared with
    the layers; ``epoch`` clamps its mtimes. Returns the digest of the tree's mtree manifest, as ``unpack``
    reports it, and warnings.

    Raises:
        RequestError: ``output`` exists, or its parent directory does not.
        StoreError, LayerError: the image cannot be read; RootfsError: the tree cannot be written.
        NotEquivalent: the written tar is not the image's tree.
    """
    done = _finished(output, staging)
    if done is not None:
        return done
    if os.path.lexists(output):
        raise RequestError("path already exists", where=output)
    if not is_directory(output.parent):
        raise RequestError("parent directory does not exist", where=output.parent)
    # Not even the group may reach setuid files or devices in it.
    own_directory(staging)
    made = staging / os.urandom(4).hex()
    try:
        if form == "directory":
            outcome = _directory(layout, image, made, rootless, advanced)
        else:
            outcome = _tar(layout, image, made, epoch, advanced), []
        record = made.with_name(f"{made.name}.json")
        record.write_text(json.dumps({"inode": _identity(made), "outcome": outcome}))
        if os.path.lexists(output):
            raise RequestError("path was created meanwhile", where=output)
        rename(made, output)
    finally:
        remove_tree(made)
    return outcome


def _finished(output: Path, staging: Path) -> tuple[str, list[str]] | None:
    """Return the result of an earlier call with this ``staging``, if ``output`` comes from it."""
    try:
        found = _identity(output)
    except FileNotFoundError:
        return None
    for path in staging.glob("*.json"):
        with open_file(path) as stream:
            record = json.load(stream)
        if record["inode"] == found:
            mtree, warnings = record["outcome"]
            return mtree, warnings
    return None


def _identity(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_dev, found.st_ino]


def _directory(
    layout: Layout, image: Resolved, place: Path, rootless: bool, advanced: Advanced
) -> tuple[str, list[str]]:
    options = UnpackOptions(rootless=rootless, advanced=advanced)
    with extracted(layout, image, place, options) as extractor:
        return tree_digest(extractor.entries()), list(extractor.warnings)


def _tar(layout: Layout, image: Resolved, place: Path, epoch: int | None, advanced: Advanced) -> str:
    stack = stack_of(layout, image, advanced)
    options = MergeOptions(source_date_epoch=epoch, scratch=place.parent)
    merged = merge_layers(None, stack, opener(layout, image, advanced), options)
    try:
        with place.open("xb") as out:
            for piece in merged:
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        with place.open("rb") as written:
            flat = Stack.of([read_members(written)])
    except OSError as error:
        raise TransformError(f"tar cannot be written, {error.strerror}", where=place) from error
    compare(stack, flat, EXACT if epoch is None else Tolerance(clamp=epoch), str(place))
    return tree_digest(flat.entries())
