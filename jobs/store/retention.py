"""Files that a layout retains for some time in ``.layerfarm``: outcomes of jobs, tags that they set, deleted blobs.

Times are by the store's clock.
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
"""Full hours; longer than Redis is expected to be away."""
_COMMITS_KEPT: Final = 24
"""Full hours; longer than a process is expected to be paused."""


class HourlyFiles:
    """Small files, ``.layerfarm/<kind>/<hour>/<name>``; retained for ``kept`` hours beside the current one.

    The first write of an hour removes the old ones.
    """

    def __init__(self, layout: Path, kind: str, kept: int) -> None:
        self._layout = layout
        self._directory = layout.joinpath(PRIVATE_DIRECTORY, kind)
        self._kept = kept
        self._files = files_of(layout)

    def write(self, name: str, content: bytes, now: float) -> Path:
        """Store ``content`` at ``now``, in seconds on the store's clock; return the file.

        Raises:
            OSError, StoreError: the store cannot be written.
        """
        hour = int(now) // _HOUR
        directory = self._directory / str(hour)
        if not self._files.is_directory(directory):
            for old in self._hours():
                if old < hour - self._kept:
                    with suppress(OSError):
                        self._files.remove(self._directory / str(old))
        path = directory / name
        replace_file(path, content, self._layout)
        return path

    def read(self, name: str) -> bytes | None:
        """Return the newest content; None if there is none.

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
# job on the store is done and its staging is removed. Resuming at the state that Redis holds, the job would miss it,
# or its own bundle would block it. So the outcome is written beside the effect before anything is removed.


def write_ending(layout: Path, job_id: str, text: str) -> None:
    """Record the outcome of a job.

    Raises:
        OSError, StoreError: the store cannot be written.
    """
    HourlyFiles(layout, "ended", _ENDINGS_KEPT).write(job_id, text.encode(), IndexFile(layout).now())


def read_ending(layout: Path, job_id: str) -> str | None:
    """Return the record of a job's outcome; None if there is none.

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
    """The tags that jobs of a farm have set in a layout: each attempt sets its tag once.

    A process may be paused just before it sets a tag, and resume when another process has done its job and a newer job
    has moved the tag: it would move the tag back. So the holder of the index's lock records the change under the
    attempt's name before making it, and records afterwards that it is made. A tag that names the image already is
    recorded once, as done. To be used under that lock.
    """

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self._files = HourlyFiles(layout, "committed", _COMMITS_KEPT)

    def is_done(self, name: str, tag: str, now: list[str]) -> bool:
        """Return True if the change ``name`` was made. ``now``: the digests that ``tag`` names.

        If its holder died between the two records, it was made unless the tag still names what it named before.
        """
        content = self._files.read(name)
        if content is None:
            return False
        commit = parse_document(Commit, content, f"{self._layout}: committed/{name}")
        return commit.done or commit.tag != tag or now != commit.before

    def begin(self, name: str, commit: Commit, now: float) -> Path:
        """Record a change before it is made, at ``now`` on the store's clock; return the record."""
        return self._files.write(name, encode_document(commit), now)

    def end(self, record: Path, commit: Commit) -> None:
        """Record that the change was made."""
        replace_file(record, encode_document(commit.model_copy(update={"done": True})), self._layout)


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
    """Blobs that garbage collections removed, kept for readers that still need one (relayer.md 4.2, point 6).

    ``.layerfarm/trash/<seconds>-<random>/<algorithm>/<hex>``: the seconds are the time of the collection. A later
    collection deletes them.
    """

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self.path = layout.joinpath(PRIVATE_DIRECTORY, "trash")
        self._files = files_of(layout)

    def new(self, now: float) -> Path:
        """Return the directory for the blobs of one collection; it is not created."""
        return self.path / f"{int(now)}-{os.urandom(4).hex()}"

    def open(self, digest: str) -> int | None:
        """Return a descriptor of the blob, which the caller closes; None: it is not here."""
        path = self._find(digest)
        return None if path is None else self._files.open(path)

    def restore(self, digest: str) -> bool:
        """Move a blob back, marked as just used; return False if it is not here or cannot be moved."""
        path = self._find(digest)
        if path is None:
            return False
        target = self._layout / BLOBS / path.parent.name / path.name
        try:
            # Marked first: a collection that starts now must not move it again.
            self._files.touch(path)
            make_directory(target.parent, self._layout)
            self._files.rename(path, target)
        except FileNotFoundError:
            return target.is_file()  # another process already restored or deleted it
        except OSError:
            return False
        return True

    def blobs(self) -> Iterator[Trashed]:
        """Yield all blobs in the trash."""
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
        """Yield the content of a directory of the trash; nothing if it is a link."""
        try:
            return [directory / name for name in self._files.names(directory)]
        except UnsafePath:
            return []

    def _collections(self) -> list[Path]:
        names = sorted(self._files.names(self.path), reverse=True)
        return [self.path / name for name in names if name.partition("-")[0].isdigit()]
