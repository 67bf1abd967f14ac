"""The trees of images as mtree manifests, kept in the user's own cache.

``build --base`` and ``diff`` need the tree of an image, not its files. A tree is derived from the image's
verified layers by the plain rules of unpacking, and from nothing else: the directory that was packed may be another
one (a bundle unpacked with --keep-dirlinks, or by umoci), and so may be what a layout brings along, whose author can
be anybody. So the cache is never beside the image, and is used only where it belongs to this user.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import BinaryIO, Final

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.image.portable_form import as_packed, portable
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.image.trees import stack_of
from layerfarm.jobs.mtree import Entry, Output, read_full, write_tree
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.notes import note_path, read_note, write_note
from layerfarm.jobs.store.usercache import user_cache

RULES: Final = 1
"""Version of the rules by which a tree is derived and written down. Raise it with every change of either: what an
older release kept is then another name's."""
_KIND: Final = "trees"


def tree_of(layout: Layout, image: Resolved) -> Iterator[Entry]:
    """The tree of an image in its :func:`portable` form and in mtree order: the one kept, else derived from its layers.

    Raises:
        LayerfarmError: the image cannot be read.
    """
    digest = image.descriptor.digest
    try:
        cache = user_cache()
    except StoreError:  # no home, or another user's: a worker in a container, sudo -E
        return portable(stack_of(layout, image).entries())
    kept = _load(cache, digest)
    if kept is not None:
        return kept
    stack = stack_of(layout, image)
    with suppress(OSError, StoreError):  # a full disk
        _keep(cache, digest, stack.entries())
    return portable(stack.entries())


def _name(image_digest: str) -> str:
    """It says how the tree came about: from which manifest, by which rules, with the options of a plain unpack."""
    return f"plain-{RULES}-{image_digest.replace(':', '-')}"


def _load(cache: Layout, image_digest: str) -> Iterator[Entry] | None:
    """None: not kept, or not as it was written."""
    name = _name(image_digest)
    record = read_note(cache, _KIND, name)
    if record is None:
        return None
    with ExitStack() as stack:
        paths = _paths(cache, name)
        try:
            for path in paths:
                os.utime(path)  # as old as the note, which goes when nobody reads it
            manifest, extra = (stack.enter_context(path.open("rb")) for path in paths)
        except OSError:
            return None
        if _record(manifest, extra) != record:
            return None
        return _read(manifest, extra, stack.pop_all())


def _read(manifest: BinaryIO, extra: BinaryIO, opened: ExitStack) -> Iterator[Entry]:
    with opened:
        yield from read_full(manifest, extra)


def _keep(cache: Layout, image_digest: str, entries: Iterable[Entry]) -> None:
    """Write the tree into the cache. All that write one write the same; the record, which is last, makes it count.

    Raises:
        OSError, StoreError: it cannot be written.
    """
    name = _name(image_digest)
    paths = _paths(cache, name)
    temporaries = [path.with_name(f".{path.name}.{os.urandom(8).hex()}") for path in paths]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            manifest, extra = (stack.enter_context(path.open("x+b")) for path in temporaries)
            write_tree(entries, Output(manifest, extra, as_packed))
            record = _record(manifest, extra)
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.rename(path)
        write_note(cache, _KIND, name, record)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _paths(cache: Layout, name: str) -> list[Path]:
    return [note_path(cache, _KIND, f"{name}.{suffix}") for suffix in ("mtree", "layerfarm")]


def _record(*streams: BufferedReader | BufferedRandom) -> bytes:
    """What the note says of the two files, which are then at their beginning: their digests."""
    lines = []
    for stream in streams:
        stream.seek(0)
        lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}\n")
        stream.seek(0)
    return "".join(lines).encode()
