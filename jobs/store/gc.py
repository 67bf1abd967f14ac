"""Remove unreferenced blobs while other processes write (relayer.md 4.2).

A blob is needed if the index leads to it or a lease names it (:mod:`layerfarm.jobs.store.leases`). Leases cover all
blobs that a queued or running job of layerfarm relies on or has written. Beyond that:

* The index is locked from before the mark until the sweep has moved the last blob out of ``blobs/``. A tag is set
  before, and its blobs are marked, or after, and then its blobs are checked first
  (:meth:`layerfarm.jobs.store.Layout.tag`, ``needs``). Manifests are read before the lock; under it only new ones.
* A blob younger than the grace period stays, for tools that take no lease and set the tag of an image last. A writer
  that finds a blob refreshes its time, and checks that it still exists (:func:`layerfarm.jobs.store.blob.refresh`).
* The sweep first moves a blob, then checks its time and the leases again, and restores it if it was used meanwhile.
* Moved blobs stay in the trash for the grace period. Readers find them there, and the mark of the next collection
  restores those that a tag leads to by then. So nothing is lost even if a collector sleeps during its sweep for so
  long that the server releases its lock.
* The clock is the store's: the time that its file system gives to a new file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from layerfarm.jobs.errors import LayerfarmError, StoreError
from layerfarm.jobs.store.atomic_file import BLOBS, PRIVATE_DIRECTORY, explained, files_of, make_directory
from layerfarm.jobs.store.descriptor import Descriptor, check_digest
from layerfarm.jobs.store.document import parse_document
from layerfarm.jobs.store.janitor import janitor, umoci_leftovers
from layerfarm.jobs.store.layout import Layout
from layerfarm.jobs.store.leases import Lease, Leases
from layerfarm.jobs.store.reachability import ManifestCache, drop_dangling, reachable, without_dangling
from layerfarm.jobs.store.result_cache import stale_results
from layerfarm.jobs.store.retention import Trash

ResultT = TypeVar("ResultT")

DEFAULT_GRACE: Final = 2 * 3600.0
"""Seconds, for tools without leases, between their first blob of an image and its tag. If they take up to twice as
long, the next collection restores their blobs from the trash."""
STAGING_GRACE: Final = 3600.0
"""Minimum age in seconds of staged files that are removed, whatever the grace: unlike umoci's directories they hold no
lock that shows whether the job runs."""


@dataclass
class Collected:
    """The result of a collection, or its forecast."""

    blobs: list[tuple[str, int]] = field(default_factory=list)
    """Digest and bytes of each unreferenced blob, moved into the trash unless the grace is 0."""
    deleted: list[tuple[str, int]] = field(default_factory=list)
    """Digest and bytes of each blob deleted after the grace in the trash."""
    restored: list[str] = field(default_factory=list)
    """Digests of blobs that are needed again and were restored from the trash."""
    trash_bytes: int = 0
    """Size of the trash afterwards."""
    young: int = 0
    """Unreferenced blobs kept because they are younger than the grace period."""
    young_bytes: int = 0
    leased: int = 0
    """Unreferenced blobs that were kept because of a lease."""
    leased_bytes: int = 0
    leftovers: list[tuple[Path, int]] = field(default_factory=list)
    """Path and bytes of each deleted file or directory: staged by crashed jobs of layerfarm or umoci, an expired lease,
    or a cached result that was not read for a long time."""
    absent: list[str] = field(default_factory=list)
    """Digests of manifests that an index names but the layout does not hold."""

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.blobs)


def collect(layout: Layout, grace: float = DEFAULT_GRACE, *, dry_run: bool = False) -> Collected:
    """Remove unneeded blobs that were not used for ``grace`` seconds, and stale private files.

    With a grace of 0 they are deleted at once, as umoci does: other tools that write meanwhile lose their untagged
    blobs, jobs of layerfarm do not.

    Raises:
        StoreError: the blob of an entry of the index is missing, a manifest is corrupt, or ``blobs`` is a link and
            may be shared with other layouts; then nothing was removed. Manifests that a nested index names may be
            absent (:attr:`Collected.absent`).
    """
    _refuse_shared(layout.path / BLOBS)
    with explained("garbage collection failed", layout.path):
        return _Collection(layout, grace, dry_run).run()


class Mark:
    """The blobs that the index leads to; computed before the lock, and completed under it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._cache = ManifestCache()
        self._entries: dict[bytes, Descriptor] = {}

    def referenced(self) -> set[str]:
        """Return the digests that the index leads to.

        Raises:
            StoreError: a manifest is missing or corrupt.
        """
        text = self._layout.index_text()
        where = str(self._layout.path / "index.json")
        known, self._entries = self._entries, {}
        for name, entry in zip(text.names, text.entries, strict=True):
            # An invalid descriptor is an error here: its blobs are unknown.
            self._entries[entry] = known.get(entry) or parse_document(Descriptor, entry, name or where)
        self._cache.absent.clear()
        roots = list(self._entries.values())
        return reachable(self._layout, without_dangling(self._layout, roots, self._cache), self._cache)

    def absent(self) -> list[str]:
        """Return the digests of manifests that indexes name but the layout did not hold."""
        return sorted(self._cache.absent)


class _Collection:
    """One run."""

    def __init__(self, layout: Layout, grace: float, dry_run: bool) -> None:
        self._layout = layout
        self._grace = grace
        self._dry_run = dry_run
        self._leases = Leases(layout.path)
        self._trash = Trash(layout.path)
        self._files = files_of(layout.path)
        self._now = layout.now()
        self._oldest = self._now - grace
        self._done = Collected()

    def run(self) -> Collected:
        layout, done = self._layout, self._done
        mark = Mark(layout)
        _explaining(mark.referenced)
        if not self._dry_run:
            _explaining(lambda: drop_dangling(layout, self._oldest))
        # No reader uses it; the janitor removes those of crashed collections.
        doomed = layout.path / PRIVATE_DIRECTORY / "doomed" / os.urandom(8).hex()
        with layout.locked():
            # Before the mark: a job that releases its lease has set its tag, or needs no blob any more.
            leases = self._leases.live(self._now)
            leased = _digests(leases)
            referenced = _explaining(mark.referenced)
            done.absent = mark.absent()
            self._empty_trash(referenced | leased, doomed)
            self._sweep(referenced, leased, doomed)
            done.leftovers = stale_results(layout, self._now)
            if not self._dry_run:
                self._trash.tidy()
        if not self._dry_run:
            with suppress(OSError):
                self._files.remove(doomed)
            for path, _ in done.leftovers:
                with suppress(FileNotFoundError):
                    self._files.remove(path)
        holders = {lease.holder for lease in leases}
        done.leftovers += janitor(
            layout.path, max(self._grace, STAGING_GRACE), now=self._now, dry_run=self._dry_run, holders=holders
        )
        done.leftovers += umoci_leftovers(layout.path, self._oldest, dry_run=self._dry_run)
        done.leftovers += self._leases.sweep(self._now, dry_run=self._dry_run)
        return done

    # --- blobs -------------------------------------------------------------------------------------

    def _empty_trash(self, needed: set[str], doomed: Path) -> None:
        """Restore blobs that are needed again; delete those that were in the trash for the grace period."""
        done = self._done
        for blob in list(self._trash.blobs()):
            held = self._layout.blob_path(blob.digest).is_file()
            if blob.digest in needed and not held:
                if self._dry_run or self._trash.restore(blob.digest):
                    done.restored.append(blob.digest)
            elif held or blob.since <= self._oldest:
                if not self._dry_run:
                    self._doom(blob.path, doomed)
                done.deleted.append((blob.digest, blob.size))
            else:
                done.trash_bytes += blob.size

    def _sweep(self, referenced: set[str], leased: frozenset[str], doomed: Path) -> None:
        """Move unneeded blobs out of ``blobs``."""
        done = self._done
        away = self._trash.new(self._now)
        for digest, path, found in list(_blobs(self._layout)):
            if digest in referenced:
                continue
            if digest in leased:
                done.leased += 1
                done.leased_bytes += found.st_size
            elif found.st_mtime > self._oldest:
                done.young += 1
                done.young_bytes += found.st_size
            elif self._dry_run or self._move(path, away):
                done.blobs.append((digest, found.st_size))
        if not self._dry_run:
            self._return_leased()
        done.blobs.sort()
        if self._grace:
            done.trash_bytes += done.bytes
        else:
            done.deleted += done.blobs
            for blob in list(self._trash.blobs()) if not self._dry_run else ():
                if blob.path.is_relative_to(away):
                    self._doom(blob.path, doomed)

    def _move(self, path: Path, away: Path) -> bool:
        """Move a blob into the trash; return False if it was removed or used meanwhile."""
        directory = away / path.parent.name
        make_directory(directory, self._layout.path)
        trashed = directory / path.name
        try:
            self._files.rename(path, trashed, unique=True)
            if self._files.lstat(trashed).st_mtime <= self._oldest:
                return True
        except FileNotFoundError:  # removed, or already restored by a reader
            return False
        self._trash.restore(f"{path.parent.name}:{path.name}")
        return False

    def _return_leased(self) -> None:
        """Restore blobs leased since the leases were read: the lease's holder may have found them in place."""
        leased = _digests(self._leases.live(self._now))
        for blob in self._done.blobs[:]:
            if blob[0] in leased and self._trash.restore(blob[0]):
                self._done.blobs.remove(blob)

    def _doom(self, path: Path, doomed: Path) -> None:
        """Move a file to be deleted after the lock is released, to where no reader finds it: large files take time."""
        make_directory(doomed, self._layout.path)
        with suppress(FileNotFoundError):
            self._files.rename(path, doomed / os.urandom(8).hex(), unique=True)


def _digests(leases: Iterable[Lease]) -> frozenset[str]:
    return frozenset[str]().union(*(lease.digests for lease in leases))


def _refuse_shared(blobs: Path) -> None:
    for path in (blobs, *sorted(blobs.iterdir())):
        if path.is_symlink():
            raise StoreError(
                "blobs directory is a link, and other layouts with unknown tags may share it",
                where=path,
                hint="run gc in the layout that holds the blobs",
            )


def _explaining(look: Callable[[], ResultT]) -> ResultT:
    """Return the result of ``look``; add to its error that nothing was removed."""
    try:
        return look()
    except LayerfarmError as error:
        raise StoreError(
            f"nothing was removed, a manifest cannot be read: {error.what}",
            where=error.where,
            hint="see layerfarm validate and docs/store.md#garbage-collection; remove the tag if the image is lost",
        ) from error


def _blobs(layout: Layout) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Yield every blob of the layout; files with other names are ignored."""
    for algorithm in sorted((layout.path / BLOBS).iterdir()):
        if not algorithm.is_dir():
            continue
        with os.scandir(algorithm) as entries:
            for entry in entries:
                digest = f"{algorithm.name}:{entry.name}"
                with suppress(ValueError, FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(found.st_mode):
                        yield check_digest(digest), algorithm / entry.name, found
