"""Remove the blobs that no tag leads to any more, while others go on writing (relayer.md 4.2).

Why nothing is lost that somebody is about to tag:

* The index is locked from before the mark until the sweep has moved the last blob out of ``blobs/``. A tag
  is given before, and its blobs are marked, or after, and then whoever gives it looks for its blobs first
  (:meth:`jobs.store.Layout.tag`, ``needs``).
* A blob younger than the grace stays: its writer may not have come to the tag yet. Who finds a blob in
  place and uses it again refreshes its time, and looks whether it is still there
  (:func:`jobs.store.ingest.refresh`).
* The sweep first moves a blob away, then looks at its time once more, and puts it back if that was
  refreshed meanwhile. What is moved is deleted at the very end; a collection that died in between leaves it
  to the next one, which puts it back before it marks.
* The clock is the store's: the time that its file system gives to a new file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from jobs.errors import LayerfarmError, StoreError
from jobs.store.descriptor import check_digest
from jobs.store.durable import create_file, explained, make_directory
from jobs.store.indexfile import PRIVATE_DIRECTORY
from jobs.store.janitor import janitor, umoci_leftovers
from jobs.store.layout import Layout
from jobs.store.locks import exclusive
from jobs.store.notes import stale_notes
from jobs.store.orphans import drop_orphans, living
from jobs.store.reach import reachable

ResultT = TypeVar("ResultT")

DEFAULT_GRACE = 24 * 3600.0
"""Seconds: longer than any job waits between its first blob and its tag."""
STAGING_GRACE = 3600.0
"""Seconds for which files that a job stages are left at least, whatever the grace: they are no garbage while
it runs, and unlike umoci's directories they hold no lock that would tell."""


@dataclass
class Collected:
    """What a collection removed, or would remove."""

    blobs: list[tuple[str, int]] = field(default_factory=list)
    """Digest and bytes of each unreferenced blob."""
    young: int = 0
    """Unreferenced blobs that were left because they are younger than the grace."""
    young_bytes: int = 0
    trees: list[Path] = field(default_factory=list)
    """Files of kept trees whose image is gone, and notes that nobody has read for long."""
    leftovers: list[Path] = field(default_factory=list)
    """What crashed jobs, of layerfarm or umoci, had staged."""

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.blobs)


def collect(layout: Layout, grace: float = DEFAULT_GRACE, *, dry_run: bool = False) -> Collected:
    """Remove what nothing leads to and nobody has touched for ``grace`` seconds.

    A grace of 0 is umoci's way: right only where nobody else writes to the layout meanwhile.

    Raises:
        StoreError: a manifest that a tag leads to is missing or corrupt, or ``blobs`` is shared with other
            layouts by a link; nothing has been removed then.
    """
    _refuse_shared(layout.path / "blobs")
    trash = layout.path / PRIVATE_DIRECTORY / "trash"
    with explained("garbage collection failed", layout.path):
        make_directory(layout.path / PRIVATE_DIRECTORY / "ingest", layout.path)
        now = _store_time(layout.path)
        done = Collected()
        if not dry_run:
            _explaining(lambda: drop_orphans(layout, now - grace))
        with exclusive(layout.path / PRIVATE_DIRECTORY / "index.lock", layout.path):
            _put_back(layout, trash)
            marked = _mark(layout)
            # A directory of its own: this collection deletes when it holds the lock no more, and another one
            # may by then have moved a blob of the same name away, to look at it and put it back.
            own = trash / os.urandom(8).hex()
            swept = _sweep(layout, marked, now - grace, own, done, dry_run)
            done.trees = _stale_trees(layout, {digest for digest, _ in done.blobs}, now - grace)
            done.trees += stale_notes(layout, now)
        for path in swept:
            path.unlink(missing_ok=True)
        _remove_empty(own)
        if not dry_run:
            for path in done.trees:
                path.unlink(missing_ok=True)
        done.leftovers = janitor(layout.path, max(grace, STAGING_GRACE), now=now, dry_run=dry_run)
        done.leftovers += umoci_leftovers(layout.path, now - grace, dry_run=dry_run)
    return done


def _refuse_shared(blobs: Path) -> None:
    for path in (blobs, *sorted(blobs.iterdir())):
        if path.is_symlink():
            raise StoreError(
                "blobs are shared with other layouts by a link, whose tags are not known here",
                where=path,
                hint="collect where the blobs are",
            )


def _store_time(layout: Path) -> float:
    """Seconds on the clock of the file system that dates the blobs (relayer.md 4.2, point 6)."""
    fd, path = create_file(layout / PRIVATE_DIRECTORY / "ingest", layout)
    try:
        os.write(fd, b"\n")
        os.fsync(fd)
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def _mark(layout: Layout) -> set[str]:
    return _explaining(lambda: reachable(layout, living(layout, layout.index().manifests)))


def _explaining(look: Callable[[], ResultT]) -> ResultT:
    """What ``look`` finds in the manifests; an error says that nothing was removed for it."""
    try:
        return look()
    except LayerfarmError as error:
        raise StoreError(
            f"nothing was removed, because a manifest cannot be read: {error.what}",
            where=error.where,
            hint="see layerfarm validate; remove the tag if the image is lost",
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


def _sweep(layout: Layout, marked: set[str], oldest: float, trash: Path, done: Collected, dry_run: bool) -> list[Path]:
    """Move what is to go into the trash, and return where it lies there."""
    moved = []
    for digest, path, found in list(_blobs(layout)):
        if digest in marked:
            continue
        if found.st_mtime > oldest:
            done.young += 1
            done.young_bytes += found.st_size
            continue
        if not dry_run:
            away = _move_away(layout, path, trash, oldest)
            if away is None:
                continue
            moved.append(away)
        done.blobs.append((digest, found.st_size))
    done.blobs.sort()
    return moved


def _move_away(layout: Layout, path: Path, trash: Path, oldest: float) -> Path | None:
    """The blob's place in the trash; None if somebody was quicker, to take it away or to use it again."""
    directory = trash / path.parent.name
    make_directory(directory, layout.path)
    away = directory / path.name
    try:
        path.rename(away)
    except FileNotFoundError:
        return None
    if away.lstat().st_mtime > oldest:
        _return(away, path)
        return None
    return away


def _put_back(layout: Layout, trash: Path) -> None:
    """What a collection that died had moved away and not deleted: the next mark decides over it anew.

    One that is alive may still be deleting; what it does not find any more is no matter to it.
    """
    for collection in trash.iterdir() if trash.is_dir() else ():
        for path in collection.glob("*/*"):
            _return(path, layout.path / "blobs" / path.parent.name / path.name)
        _remove_empty(collection)


def _remove_empty(collection: Path) -> None:
    with suppress(OSError):
        for algorithm in collection.iterdir():
            algorithm.rmdir()
        collection.rmdir()


def _return(away: Path, path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.exists():  # stored again meanwhile
            away.unlink()
        else:
            away.rename(path)


def _stale_trees(layout: Layout, swept: set[str], oldest: float) -> list[Path]:
    """Files of kept trees whose manifest is not in the store, and those that never got their name."""
    directory = layout.path / PRIVATE_DIRECTORY / "trees"
    stale = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        digest = path.stem.replace("_", ":", 1)
        try:
            check_digest(digest)
        except ValueError:
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime <= oldest:
                    stale.append(path)
            continue
        if digest in swept or not layout.blob_path(digest).exists():
            stale.append(path)
    return stale
