"""Remove the blobs that nothing needs any more, while others go on writing (relayer.md 4.2).

What is needed: whatever the index leads to, and whatever a lease names (:mod:`layerfarm.jobs.store.leases`), so all
that a queued or running job of layerfarm counts on or has made. Beyond that:

* The index is locked from before the mark until the sweep has moved the last blob out of ``blobs/``. A tag
  is given before, and its blobs are marked, or after, and then whoever gives it looks for its blobs first
  (:meth:`layerfarm.jobs.store.Layout.tag`, ``needs``). What can be read before the lock is: under it only what is new.
* A blob younger than the grace stays. That is for those who take no lease: another tool that copies an image into
  the layout, and comes to its tag last. Who finds a blob in place and uses it again refreshes its time, and looks
  whether it is still there (:func:`layerfarm.jobs.store.ingest.refresh`).
* The sweep first moves a blob away, then looks at its time and at the leases once more, and puts it back if somebody
  came for it meanwhile.
* What it moves goes into the trash, for as long as the grace. A reader that misses a blob takes it from there, and so
  does the mark of the next collection when a tag leads to it by then: so also a collector that slept in the middle of
  its sweep, for so long that the server gave its lock away, takes nothing for good.
* The clock is the store's: the time that its file system gives to a new file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from layerfarm.jobs.errors import LayerfarmError, StoreError
from layerfarm.jobs.store.descriptor import Descriptor, check_digest
from layerfarm.jobs.store.document import parse_document
from layerfarm.jobs.store.durable import explained, files_of, make_directory
from layerfarm.jobs.store.indexfile import PRIVATE_DIRECTORY
from layerfarm.jobs.store.janitor import janitor, umoci_leftovers
from layerfarm.jobs.store.layout import Layout
from layerfarm.jobs.store.leases import Leases
from layerfarm.jobs.store.notes import stale_notes
from layerfarm.jobs.store.orphans import drop_orphans, living
from layerfarm.jobs.store.reach import Read, reachable
from layerfarm.jobs.store.trash import Trash

ResultT = TypeVar("ResultT")

DEFAULT_GRACE: Final = 2 * 3600.0
"""Seconds. Our own jobs hold leases; this is for other tools, between their first blob of an image and its tag. One
that takes longer, up to twice as long, finds its blobs restored from the trash by the next collection."""
STAGING_GRACE: Final = 3600.0
"""Seconds for which files that a job stages are left at least, whatever the grace: they are no garbage while
it runs, and unlike umoci's directories they hold no lock that would tell."""


@dataclass
class Collected:
    """What a collection removed, or would remove."""

    blobs: list[tuple[str, int]] = field(default_factory=list)
    """Digest and bytes of each unreferenced blob that was taken out of the layout, into the trash unless the grace
    is 0."""
    deleted: list[tuple[str, int]] = field(default_factory=list)
    """Those that were deleted for good: they had been in the trash for the grace."""
    restored: list[str] = field(default_factory=list)
    """Digests that something needs again and that came back from the trash."""
    trash_bytes: int = 0
    """What lies in the trash afterwards."""
    young: int = 0
    """Unreferenced blobs that were left because they are younger than the grace."""
    young_bytes: int = 0
    leased: int = 0
    """Unreferenced blobs that were left because a job has a lease of them."""
    leased_bytes: int = 0
    notes: list[Path] = field(default_factory=list)
    """Those that nobody has read for long."""
    leftovers: list[Path] = field(default_factory=list)
    """What crashed jobs, of layerfarm or umoci, had staged, and leases that ran out."""

    absent: list[str] = field(default_factory=list)
    """Digests of manifests that an index names and the layout does not hold: there is nothing of them to be kept."""

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.blobs)

    @property
    def freed(self) -> int:
        """Bytes that the disk has back."""
        return sum(size for _, size in self.deleted)


def collect(layout: Layout, grace: float = DEFAULT_GRACE, *, dry_run: bool = False) -> Collected:
    """Remove what nothing needs and nobody has touched for ``grace`` seconds.

    A grace of 0 is umoci's way: what goes is deleted at once, and other tools that write meanwhile lose what they have
    not tagged yet. Jobs of layerfarm do not.

    Raises:
        StoreError: what an entry of the index names is missing, a manifest that it leads to is corrupt, or
            ``blobs`` is shared with other layouts by a link; nothing has been removed then. Manifests that a nested
            index names may be absent (:attr:`Collected.absent`).
    """
    _refuse_shared(layout.path / "blobs")
    with explained("garbage collection failed", layout.path):
        return _Collection(layout, grace, dry_run).run()


class Mark:
    """What is needed, looked for twice: at leisure, then under the lock, where most of it is known."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._read = Read()
        self._entries: dict[bytes, Descriptor] = {}

    def referenced(self) -> set[str]:
        """The digests that the index leads to.

        Raises:
            StoreError: a manifest is missing or corrupt.
        """
        text = self._layout.index_text()
        where = str(self._layout.path / "index.json")
        known, self._entries = self._entries, {}
        for name, entry in zip(text.names, text.entries, strict=True):
            # Of an entry that is no descriptor nobody knows what it leads to.
            self._entries[entry] = known.get(entry) or parse_document(Descriptor, entry, name or where)
        self._read.absent.clear()
        roots = list(self._entries.values())
        return reachable(self._layout, living(self._layout, roots, self._read), self._read)

    def absent(self) -> list[str]:
        """The digests of manifests that indexes name and the layout did not hold."""
        return sorted(self._read.absent)


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
            _explaining(lambda: drop_orphans(layout, self._oldest))
        # What is in here is found by nobody any more. One that a dead collection left is the janitor's.
        doomed = layout.path / PRIVATE_DIRECTORY / "doomed" / os.urandom(8).hex()
        with layout.locked():
            # Before the mark: who lets a lease go has given the tag, or needs no blob any more.
            leases = self._leases.live(self._now)
            leased = frozenset[str]().union(*(lease.digests for lease in leases))
            referenced = _explaining(mark.referenced)
            done.absent = mark.absent()
            self._empty_trash(referenced | leased, doomed)
            self._sweep(referenced, leased, doomed)
            done.notes = stale_notes(layout, self._now)
            if not self._dry_run:
                self._trash.tidy()
        if not self._dry_run:
            with suppress(OSError):
                self._files.remove(doomed)
            for path in done.notes:
                with suppress(FileNotFoundError):
                    self._files.remove(path)
        holders = {lease.holder for lease in leases}
        done.leftovers = janitor(
            layout.path, max(self._grace, STAGING_GRACE), now=self._now, dry_run=self._dry_run, holders=holders
        )
        done.leftovers += umoci_leftovers(layout.path, self._oldest, dry_run=self._dry_run)
        done.leftovers += self._leases.sweep(self._now, dry_run=self._dry_run)
        return done

    # --- blobs -------------------------------------------------------------------------------------

    def _empty_trash(self, needed: set[str], doomed: Path) -> None:
        """Put back what is needed again; let go of what has lain there for the grace."""
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
        """Move what is to go out of ``blobs``."""
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
        """False if somebody was quicker, to take it away or to use it again."""
        directory = away / path.parent.name
        make_directory(directory, self._layout.path)
        trashed = directory / path.name
        try:
            self._files.rename(path, trashed)
            if self._files.lstat(trashed).st_mtime <= self._oldest:
                return True
        except FileNotFoundError:  # gone, or back already because somebody missed it
            return False
        self._trash.restore(f"{path.parent.name}:{path.name}")
        return False

    def _return_leased(self) -> None:
        """Put back what came under a lease since the leases were read: whoever took it may have seen the blob."""
        leased = frozenset[str]().union(*(lease.digests for lease in self._leases.live(self._now)))
        for blob in self._done.blobs[:]:
            if blob[0] in leased and self._trash.restore(blob[0]):
                self._done.blobs.remove(blob)

    def _doom(self, path: Path, doomed: Path) -> None:
        """Take it where no reader looks, to be deleted when the lock is free: large files take their time."""
        make_directory(doomed, self._layout.path)
        with suppress(FileNotFoundError):
            self._files.rename(path, doomed / os.urandom(8).hex())


def _refuse_shared(blobs: Path) -> None:
    for path in (blobs, *sorted(blobs.iterdir())):
        if path.is_symlink():
            raise StoreError(
                "blobs are shared with other layouts by a link, whose tags are not known here",
                where=path,
                hint="collect where the blobs are",
            )


def _explaining(look: Callable[[], ResultT]) -> ResultT:
    """What ``look`` finds in the manifests; an error says that nothing was removed for it."""
    try:
        return look()
    except LayerfarmError as error:
        raise StoreError(
            f"nothing was removed, because a manifest cannot be read: {error.what}",
            where=error.where,
            hint="see layerfarm validate and docs/store.md#gc; remove the tag if the image is lost",
        ) from error


def _blobs(layout: Layout) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Every blob of the layout. Files of other names are not ours to judge."""
    for algorithm in sorted((layout.path / "blobs").iterdir()):
        if not algorithm.is_dir():
            continue
        with os.scandir(algorithm) as entries:
            for entry in entries:
                digest = f"{algorithm.name}:{entry.name}"
                with suppress(ValueError, FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(found.st_mode):
                        yield check_digest(digest), algorithm / entry.name, found
