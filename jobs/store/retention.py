"""Files that a layout retains for some time in ``.layerfarm``: how jobs ended, which tags they gave, deleted blobs.

Time is the store's clock.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import UnsafePath
from layerfarm.jobs.store.atomic_file import BLOBS, PRIVATE_DIRECTORY, files_of, make_directory, read_file, replace_file
from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.index import IndexFile

_HOUR: Final = 3600
_ENDINGS_KEPT: Final = 2
"""Full hours: as long as a Redis may be away."""
_COMMITS_KEPT: Final = 24
"""Full hours: longer than a process is paused and woken again."""


class HourlyFiles:
    """Small files, ``.layerfarm/<kind>/<hour>/<name>``; kept for ``kept`` hours beside the current one.

    The first write of an hour removes the old ones.
    """

    def __init__(self, layout: Path, kind: str, kept: int) -> None:
        self._layout = layout
        self._directory = layout / PRIVATE_DIRECTORY / kind
        self._kept = kept
        self._files = files_of(layout)

    def write(self, name: str, content: bytes) -> None:
        """Keep ``content`` from now on.

        Raises:
            OSError, StoreError: the store cannot be written.
        """
        hour = int(IndexFile(self._layout).now()) // _HOUR
        directory = self._directory / str(hour)
        if not self._files.is_directory(directory):
            for old in self._hours():
                if old < hour - self._kept:
                    with suppress(OSError):
                        self._files.remove(self._directory / str(old))
        replace_file(directory / name, content, self._layout)

    def change(self, name: str, content: bytes) -> None:
        """Replace the content of a kept file, not its time; nothing if there is none."""
        path = self._find(name)
        if path is not None:
            replace_file(path, content, self._layout)

    def read(self, name: str) -> bytes | None:
        """The newest content; None if none is kept.

        Raises:
            StoreError: it cannot be read.
        """
        path = self._find(name)
        return None if path is None else read_file(path, "document_bytes", self._layout)

    def _find(self, name: str) -> Path | None:
        paths = (self._directory / str(hour) / name for hour in sorted(self._hours(), reverse=True))
        return next(filter(self._files.is_file, paths), None)

    def _hours(self) -> list[int]:
        return [int(name) for name in self._files.names(self._directory) if name.isdigit()]


# --- how jobs ended -------------------------------------------------------------------------------
#
# For a farm whose Redis lost its newest writes, by a power cut or a failover to a late replica. The effect of such a
# job on the store is done and its staging is removed; resuming where Redis believes it to be, the job would miss that,
# or find its own bundle in its way. So the outcome is written beside the effect before anything is removed.


def write_ending(layout: Path, job_id: str, text: str) -> None:
    """Record how a job ended.

    Raises:
        OSError, StoreError: the store cannot be written.
    """
    HourlyFiles(layout, "ended", _ENDINGS_KEPT).write(job_id, text.encode())


def read_ending(layout: Path, job_id: str) -> str | None:
    """The record of how a job ended; None if there is none.

    Raises:
        StoreError: it cannot be read.
    """
    content = HourlyFiles(layout, "ended", _ENDINGS_KEPT).read(job_id)
    return None if content is None else content.decode()


# --- which tags they gave -------------------------------------------------------------------------


class Commit(Document):
    """One change of the index by one attempt at a job."""

    tag: str
    before: list[str]
    """Digests that the tag named; usually none or one."""
    after: str
    done: bool = False


class Commits:
    """The tags that jobs of a farm have given in a layout: each attempt gives its tag once.

    A process that is paused just before it gives a tag, and wakes when another has done its job and a newer job has
    moved the tag, would move it back. So the holder of the index's lock records the change under the attempt's name
    before it is made, and that it is made afterwards. To be used under that lock.
    """

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self._files = HourlyFiles(layout, "committed", _COMMITS_KEPT)

    def is_done(self, name: str, tag: str, now: list[str]) -> bool:
        """True if the change ``name`` was made. ``now``: the digests that ``tag`` names.

        If its holder died between the two records, it was made unless the tag names what it named before.
        """
        content = self._files.read(name)
        if content is None:
            return False
        commit = parse_document(Commit, content, f"{self._layout}: committed/{name}")
        return commit.done or commit.tag != tag or now != commit.before

    def begin(self, name: str, commit: Commit) -> None:
        """Record what is about to change."""
        self._files.write(name, encode_document(commit))

    def end(self, name: str, commit: Commit) -> None:
        """Record that it has changed."""
        self._files.change(name, encode_document(commit.model_copy(update={"done": True})))


# --- deleted blobs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trashed:
    """A blob in the trash."""

    digest: str
    path: Path
    size: int
    since: float
    """Seconds on the store's clock."""


class Trash:
    """Blobs that garbage collections removed, for readers that still need one (relayer.md 4.2, point 6).

    ``.layerfarm/trash/<seconds>-<random>/<algorithm>/<hex>``: the seconds are the time of the collection. A later
    collection deletes them.
    """

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self.path = layout / PRIVATE_DIRECTORY / "trash"
        self._files = files_of(layout)

    def new(self, now: float) -> Path:
        """The directory for the blobs of one collection; not created yet."""
        return self.path / f"{int(now)}-{os.urandom(4).hex()}"

    def open(self, digest: str) -> int | None:
        """A descriptor of the blob, which the caller closes; None: it is not here."""
        path = self._find(digest)
        return None if path is None else self._files.open(path)

    def restore(self, digest: str) -> bool:
        """Move a blob back, marked as just used. False: it is not here, or may not be moved."""
        path = self._find(digest)
        if path is None:
            return False
        target = self._layout / BLOBS / path.parent.name / path.name
        try:
            # Marked first: a collection that comes now must not move it again.
            self._files.touch(path)
            make_directory(target.parent, self._layout)
            self._files.rename(path, target)
        except FileNotFoundError:
            return target.is_file()  # another process was faster to restore or to delete it
        except OSError:
            return False
        return True

    def blobs(self) -> Iterator[Trashed]:
        """All blobs in the trash."""
        for collection in self._collections():
            since = float(collection.name.partition("-")[0])
            for algorithm in self._below(collection):
                for path in self._below(algorithm):
                    with suppress(FileNotFoundError):
                        found = self._files.lstat(path)
                        if stat.S_ISREG(found.st_mode):
                            yield Trashed(f"{algorithm.name}:{path.name}", path, found.st_size, since)

    def tidy(self) -> None:
        """Remove empty directories."""
        for collection in self._collections():
            with suppress(OSError):
                for algorithm in self._below(collection):
                    self._files.rmdir(algorithm)
                self._files.rmdir(collection)

    def _find(self, digest: str) -> Path | None:
        algorithm, _, encoded = digest.partition(":")
        paths = (collection / algorithm / encoded for collection in self._collections())
        return next(filter(self._files.is_file, paths), None)

    def _below(self, directory: Path) -> list[Path]:
        """The content of a directory of the trash; nothing if a link is in its place."""
        try:
            return [directory / name for name in self._files.names(directory)]
        except UnsafePath:
            return []

    def _collections(self) -> list[Path]:
        names = sorted(self._files.names(self.path), reverse=True)
        return [self.path / name for name in names if name.partition("-")[0].isdigit()]
