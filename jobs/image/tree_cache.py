"""The trees of images, as mtree manifests kept beside the store.

``build --base`` needs the tree of an image, not its files. A build leaves the manifests of its base
and of its image here, so that the next one need not read their layers again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from layerfarm.jobs.image.bundle import extra_name, mtree_name
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.image.trees import stack_of
from layerfarm.jobs.mtree import UNRECORDED_TIME, Entry, Output, read_full, write_tree
from layerfarm.jobs.rootfs import portable_xattrs
from layerfarm.jobs.store import PRIVATE_DIRECTORY, Layout
from layerfarm.jobs.store.durable import create_file, explained, files_of, make_directory, rename_durably


def portable(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries as a layer can hold them: the same for the tree that was packed and for its copy.

    Whole seconds; sizes and link counts of directories, which are the filesystem's affair, are 0 and 1;
    no sockets; xattrs as :func:`layerfarm.jobs.rootfs.portable_xattrs` leaves them.
    """
    return (entry for entry in map(as_packed, entries) if entry is not None)


def as_packed(entry: Entry) -> Entry | None:
    """One of :func:`portable`: the same object where nothing is different; None for a socket."""
    path, kind, mode, uid, gid, size, nlink, mtime, link, sha256, xattrs, device = entry
    if kind == "socket":
        return None
    if mtime != UNRECORDED_TIME:
        mtime -= mtime % 1_000_000_000
    if kind == "dir":
        size, nlink = 0, 1
    elif kind == "link":
        size = len(link or b"")
    if xattrs:
        xattrs = portable_xattrs(xattrs)
    fields = path, kind, mode, uid, gid, size, nlink, mtime, link, sha256, xattrs, device
    # As where fragments are read: a tree has a million of these.
    made: Entry = tuple.__new__(Entry, fields)
    return entry if made == entry else made


def tree_digest(entries: Iterable[Entry]) -> str:
    """``sha256:`` digest of the mtree manifest of :func:`portable` entries, without writing it anywhere."""
    sink = _Digest()
    write_tree(entries, Output(cast(BinaryIO, sink), adapt=as_packed))
    return f"sha256:{sink.hash.hexdigest()}"


def write_tree_and_digest(entries: Iterable[Entry], manifest: BinaryIO, extra: BinaryIO) -> tuple[int, str]:
    """Write a tree as it lies on disk, and take its :func:`tree_digest`, in one pass; the entries, and the digest."""
    sink = _Digest()
    count = write_tree(entries, Output(manifest, extra), Output(cast(BinaryIO, sink), adapt=as_packed))
    return count, f"sha256:{sink.hash.hexdigest()}"


def store_tree(layout: Layout, manifest_digest: str, entries: Iterable[Entry]) -> None:
    """Keep the tree of the image whose manifest has this digest, in its :func:`portable` form.

    Raises:
        StoreError: the files cannot be written.
    """
    with _replacing(layout, manifest_digest) as (manifest, extra):
        write_tree(entries, Output(manifest, extra, as_packed))


def adopt_tree(layout: Layout, manifest_digest: str, manifest: Path, extra: Path) -> None:
    """The same for a tree that was written to two files already, in its :func:`portable` form."""
    with _replacing(layout, manifest_digest) as targets:
        for source, target in zip((manifest, extra), targets, strict=True):
            with source.open("rb") as stream:
                shutil.copyfileobj(stream, target, 1 << 20)


def share_tree(layout: Layout, known_digest: str, manifest_digest: str) -> bool:
    """The same for an image that has the tree of another one; False if that one's is not kept here.

    The files are never changed once they have their names, so both images may share them.
    """
    directory, files = _directory(layout), files_of(layout.path)
    for name in (mtree_name, extra_name):
        try:
            files.link(directory / name(known_digest), directory / name(manifest_digest))
        except FileExistsError:
            pass
        except OSError:
            return False
    return True


def load_tree(layout: Layout, manifest_digest: str) -> Iterator[Entry] | None:
    """The tree of the image, in mtree order; None if it is not kept here.

    Raises:
        UnsafePath: a link stands in the way, or it is not a regular file.
    """
    directory, files = _directory(layout), files_of(layout.path)
    with ExitStack() as stack:
        try:
            manifest, extra = (
                stack.enter_context(os.fdopen(files.open(directory / name(manifest_digest)), "rb"))
                for name in (mtree_name, extra_name)
            )
        except FileNotFoundError:
            return None
        return _read(manifest, extra, stack.pop_all())


def tree_of(layout: Layout, image: Resolved, *, keep: bool = False) -> Iterator[Entry]:
    """The tree of an image in its :func:`portable` form, in mtree order: the one kept, else read from its layers.

    ``keep``: keep it for the next time. Otherwise nothing is written, so the layout may be somebody else's.

    Raises:
        LayerfarmError: a layer is missing, corrupt, or cannot be applied.
        StoreError: the tree is to be kept, and cannot be.
    """
    digest = image.descriptor.digest
    kept = load_tree(layout, digest)
    if kept is not None:
        return kept
    entries = portable(stack_of(layout, image).entries())
    if not keep:
        return entries
    store_tree(layout, digest, entries)
    kept = load_tree(layout, digest)
    assert kept is not None
    return kept


def _read(manifest: BinaryIO, extra: BinaryIO, opened: ExitStack) -> Iterator[Entry]:
    with opened:
        yield from read_full(manifest, extra)


@contextmanager
def _replacing(layout: Layout, digest: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Two files to be written; both get their names at the end, or neither does."""
    directory = _directory(layout)
    # load_tree wants both, so the order of the renames does not matter: all who write write the same.
    names = (mtree_name(digest), extra_name(digest))
    temporaries: list[Path] = []
    try:
        with explained("tree of the image cannot be kept", directory), ExitStack() as stack:
            make_directory(directory, layout.path)
            streams = []
            for _ in names:
                fd, path = create_file(directory, layout.path)
                streams.append(stack.enter_context(os.fdopen(fd, "wb", 1 << 20)))
                temporaries.append(path)
            yield streams[0], streams[1]
            for stream, path, name in zip(streams, temporaries, names, strict=True):
                stream.flush()
                os.fsync(stream.fileno())
                rename_durably(path, directory / name, layout.path)
    finally:
        for path in temporaries:
            with suppress(FileNotFoundError):
                files_of(layout.path).unlink(path)


def _directory(layout: Layout) -> Path:
    return layout.path / PRIVATE_DIRECTORY / "trees"


class _Digest:
    """A file to write to that keeps only the digest."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return len(data)
