"""The tree of an image as mtree entries, derived from its layers or from the user's cache; nothing is unpacked.

``build --base`` and ``diff`` need the tree of an image, not its files. It is derived from the image's verified layers
by the rules of a plain unpack. Other sources may differ (a bundle unpacked with --keep-dirlinks, or by umoci) or be
untrusted (files beside the layout), so the cache belongs to the user and is never beside the image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import BinaryIO, Final, cast

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.fs import portable_xattrs
from layerfarm.jobs.fs.names import rename
from layerfarm.jobs.image.bundle import closing_after
from layerfarm.jobs.image.layers import Advanced, unheard
from layerfarm.jobs.image.listings import ReadLayer, list_layer
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.stack import Stack
from layerfarm.jobs.mtree import UNRECORDED_TIME, Entry, Output, read_full, write_tree
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import read_result, result_path, user_cache, write_result


def stack_of(
    layout: Layout, image: Resolved, advanced: Advanced = unheard, read_layer: ReadLayer = list_layer
) -> Stack:
    """Return the tree of an image. Layers without a listing are read and verified.

    ``read_layer``: :func:`~layerfarm.jobs.image.layers.read_layer` to read and verify all of them.

    Raises:
        BlobNotFound, DigestMismatch, SizeMismatch: the image is incomplete or corrupt.
        LayerError, LimitExceeded: a layer cannot be applied.
    """
    return Stack.of(read_layer(layout, layer, diff_id, advanced) for layer, diff_id in image.layers)


def stacks_of(
    layout_old: Layout, old: Resolved, layout_new: Layout, new: Resolved, advanced: Advanced = unheard
) -> tuple[Stack, Stack]:
    """Return the trees of two images; the lowest layers that they share are read once. Raises as :func:`stack_of`."""
    before, after = Stack(), Stack()
    common = 0
    for layer_old, layer_new in zip(old.layers, new.layers, strict=False):
        if (layer_old[0].digest, layer_old[1]) != (layer_new[0].digest, layer_new[1]):
            break
        reads = list(list_layer(layout_new, *layer_new, advanced))
        before.apply_read(reads)
        after.apply_read(reads)
        common += 1
    for stack, layout, image in ((before, layout_old, old), (after, layout_new, new)):
        for layer, diff_id in image.layers[common:]:
            stack.apply_read(list_layer(layout, layer, diff_id, advanced))
    return before, after


# --- portable form ---------------------------------------------------------------------------------


def portable(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the entries as a layer can hold them: the same for the tree that was packed and for its copy.

    Whole seconds; sizes and link counts of directories, which depend on the filesystem, are 0 and 1; no sockets;
    xattrs as :func:`layerfarm.jobs.fs.portable_xattrs` leaves them.
    """
    return (entry for entry in map(portable_entry, entries) if entry is not None)


def portable_entry(entry: Entry) -> Entry | None:
    """Return one entry of :func:`portable`: the same object if nothing differs; None for a socket."""
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
    # Bypasses Entry's own __new__, as for fragments: a tree has a million of these.
    made: Entry = tuple.__new__(Entry, fields)
    return entry if made == entry else made


def tree_digest(entries: Iterable[Entry]) -> str:
    """Return the ``sha256:`` digest of the mtree manifest of :func:`portable` entries; nothing is written."""
    sink = ManifestDigest()
    write_tree(entries, sink.output())
    return sink.digest()


def write_tree_and_digest(entries: Iterable[Entry], manifest: BinaryIO, extra: BinaryIO) -> tuple[int, str]:
    """Write a tree as on disk and compute its :func:`tree_digest`, in one pass; return the entries and the digest."""
    sink = ManifestDigest()
    count = write_tree(entries, Output(manifest, extra), sink.output())
    return count, sink.digest()


class ManifestDigest:
    """Hashes the manifest of a tree in its :func:`portable` form."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def output(self) -> Output:
        """Return the output to write the tree to."""
        return Output(cast(BinaryIO, self), adapt=portable_entry)

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return len(data)

    def digest(self) -> str:
        """``sha256:`` digest, once the tree is written."""
        return f"sha256:{self._hash.hexdigest()}"


# --- cache -----------------------------------------------------------------------------------------

RULES: Final = 1
"""Version of the rules by which a tree is derived and written, part of its name in the cache. Increment it with every
change of either."""
_KIND: Final = "trees"


def tree_of(layout: Layout, image: Resolved) -> Iterator[Entry]:
    """Return the tree of an image in :func:`portable` form and in mtree order, from the cache or from its layers.

    Raises:
        LayerfarmError: the image cannot be read.
    """
    # Derived from this manifest, by these rules, with the options of a plain unpack.
    name = f"plain-{RULES}-{image.descriptor.digest.replace(':', '-')}"
    try:
        cache = user_cache()
    except StoreError:  # no home, or it belongs to another user: a worker in a container, sudo -E
        return portable(stack_of(layout, image).entries())
    kept = _load(cache, name)
    if kept is not None:
        return kept
    stack = stack_of(layout, image)
    with suppress(OSError, StoreError):  # a full disk
        _keep(cache, name, stack.entries())
    return portable(stack.entries())


def _load(cache: Layout, name: str) -> Iterator[Entry] | None:
    """Load the tree; None: not cached, or damaged."""
    record = read_result(cache, _KIND, name)
    if record is None:
        return None
    with ExitStack() as stack:
        paths = _paths(cache, name)
        try:
            for path in paths:
                os.utime(path)  # as recent as the record, which expires if unread
            manifest, extra = (stack.enter_context(path.open("rb")) for path in paths)
        except OSError:
            return None
        if _record(manifest, extra) != record:
            return None
        return closing_after(read_full(manifest, extra), stack.pop_all())


def _keep(cache: Layout, name: str, entries: Iterable[Entry]) -> None:
    """Write the tree into the cache; the record, written last, makes it valid. All writers write the same bytes.

    Raises:
        OSError, StoreError: it cannot be written.
    """
    paths = _paths(cache, name)
    temporaries = [path.with_name(f".{path.name}.{os.urandom(8).hex()}") for path in paths]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            manifest, extra = (stack.enter_context(path.open("x+b")) for path in temporaries)
            write_tree(entries, Output(manifest, extra, portable_entry))
            record = _record(manifest, extra)
        for temporary, path in zip(temporaries, paths, strict=True):
            rename(temporary, path)
        write_result(cache, _KIND, name, record)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _paths(cache: Layout, name: str) -> list[Path]:
    return [result_path(cache, _KIND, f"{name}.{suffix}") for suffix in ("mtree", "layerfarm")]


def _record(*streams: BufferedReader | BufferedRandom) -> bytes:
    """Return the digests of the files, as the record has them; leaves each file at its beginning."""
    lines = []
    for stream in streams:
        stream.seek(0)
        lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}\n")
        stream.seek(0)
    return "".join(lines).encode()
