"""The stat cache: the walk of a tree with a known manifest, stored beside that manifest.

A later walk is compared with it record by record, and only entries whose record differs are read. An entry cannot be
changed without advancing its ctime, and so its record, with one exception that no stat cache can detect: writing
through a shared mapping that was created before the walk, on a file system that does not update ctimes for those
writes (tmpfs).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO, NamedTuple

from layerfarm.jobs.errors import StaleCache, UnsafePath
from layerfarm.jobs.fs import open_file
from layerfarm.jobs.mtree.patch import Edit, write_edits
from layerfarm.jobs.mtree.walk import RACY, Walk, key_of_record

_HEADER = re.compile(
    rb"#layerfarm stat cache 1 entries=(\d{1,19}) untrusted=(\d{1,19}) walk=([0-9a-f]{64})"
    rb" manifest=([0-9a-f]{64}) extra=([0-9a-f]{64}) tree=(sha256:[0-9a-f]{64})\n"
)
_LONGEST_HEADER = 1024


class StatCache(NamedTuple):
    """A stat cache that belongs to the manifest beside it."""

    path: Path
    walk: Walk
    """Walk file of the tree, written with the manifest."""
    digest: str
    """sha256 of the records."""
    tree: str
    """The ``sha256:`` digest of the tree's portable manifest."""

    def unchanged(self, digest: str) -> bool:
        """Return True if a later walk, whose file has this sha256, shows that no entry was touched."""
        return digest == self.digest and not self.walk.racy


class Dirty(NamedTuple):
    """Counts of the entries that differ between a walk and a stat cache."""

    entries: int
    """New entries, and entries that may have changed; all are read."""
    dropped: int
    """Entries of the old tree that are gone or read again."""


class Digests(NamedTuple):
    """sha256 of the files that a stat cache is made of, and of the tree."""

    walk: str
    manifest: str
    extra: str
    tree: str
    """The ``sha256:`` digest of the tree's portable manifest."""


def write_stat_cache(out: BinaryIO, walk_file: Path, walk: Walk, digests: Digests) -> None:
    """Write the cache for the tree that the manifest and the extra file describe.

    No record of the walk may be younger than the reading of its entry: an entry that changes between its walk and its
    reading is dirty the next time; the reverse would go unnoticed.
    """
    with walk_file.open("rb") as records:
        header = (
            f"#layerfarm stat cache 1 entries={walk.entries} untrusted={walk.racy} walk={digests.walk}"
            f" manifest={digests.manifest} extra={digests.extra} tree={digests.tree}\n"
        )
        out.write(header.encode("ascii"))
        shutil.copyfileobj(records, out, 1 << 20)


def sha256_of(path: Path) -> str:
    """sha256 of a file in a bundle, in hexadecimal."""
    with open_file(path) as stream:
        return file_digest(stream, "sha256").hexdigest()


def open_stat_cache(path: Path, manifest: Path, extra: Path) -> StatCache:
    """Return the stat cache at ``path``, if it belongs to ``manifest`` and ``extra`` as they are now.

    Raises:
        StaleCache: it belongs to others, is missing, or is of another version.
    """
    try:
        with open_file(path) as stream:
            found = _HEADER.fullmatch(stream.readline(_LONGEST_HEADER))
        if found is None:
            raise StaleCache("not a stat cache of this version", where=path)
        entries, racy, digest, *others, tree = (group.decode("ascii") for group in found.groups())
        if others != [sha256_of(manifest), sha256_of(extra)]:
            raise StaleCache("stat cache belongs to another manifest", where=path)
    except UnsafePath as error:
        raise StaleCache(f"stat cache cannot be read, {error.what}", where=path) from error
    except OSError as error:
        raise StaleCache(f"stat cache cannot be read, {error.strerror}", where=path) from error
    return StatCache(path, Walk(int(entries), int(racy)), digest, tree)


def find_dirty(cache: StatCache, walk_file: Path, dirty: BinaryIO, script: BinaryIO) -> Dirty:
    """Compare a new walk with the cached one, record by record.

    Writes the records of the dirty entries as a walk file, and the edit script that produces the new tree from the old
    one and the dirty entries.

    Raises:
        StaleCache: the cache is damaged.
    """
    taken = dropped = 0

    def counted(edits: Iterator[Edit]) -> Iterator[Edit]:
        nonlocal taken, dropped
        for edit in edits:
            taken += edit.take
            dropped += edit.drop
            yield edit

    with open_file(cache.path) as old, walk_file.open("rb") as new:
        old.readline(_LONGEST_HEADER)
        start = old.tell()
        if file_digest(old, "sha256").hexdigest() != cache.digest:
            raise StaleCache("stat cache is damaged", where=cache.path)
        old.seek(start)
        write_edits(counted(_edits(iter(old), iter(new), dirty)), script)
    return Dirty(taken, dropped)


def _edits(olds: Iterator[bytes], news: Iterator[bytes], dirty: BinaryIO) -> Iterator[Edit]:
    """Merge two walk files in mtree order."""
    keep = drop = take = 0
    old, new = next(olds, b""), next(news, b"")
    while old and new:
        if old == new and not old.startswith(RACY):
            # 999 of 1,000 records are equal: no field is parsed.
            if drop or take:
                yield Edit(keep, drop, take)
                keep = drop = take = 0
            keep += 1
            old, new = next(olds, b""), next(news, b"")
            continue
        old_key, new_key = key_of_record(old), key_of_record(new)
        if old_key <= new_key:
            drop += 1
            old = next(olds, b"")
        if new_key <= old_key:
            take += 1
            dirty.write(new)
            new = next(news, b"")
    while old:
        drop += 1
        old = next(olds, b"")
    while new:
        take += 1
        dirty.write(new)
        new = next(news, b"")
    yield Edit(keep, drop, take)
