"""Where a garbage collection puts blobs first, and who misses one finds it again (relayer.md 4.2, point 6).

``.layerfarm/trash/<seconds>-<random>/<algorithm>/<hex>``: the seconds are those of the collection, on the store's
clock. A later collection deletes what nobody came for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfarm.jobs.errors import UnsafePath
from layerfarm.jobs.store.durable import files_of, make_directory
from layerfarm.jobs.store.indexfile import PRIVATE_DIRECTORY


@dataclass(frozen=True)
class Trashed:
    """A blob in the trash."""

    digest: str
    path: Path
    size: int
    since: float
    """Seconds on the store's clock."""


class Trash:
    """The trash of one layout."""

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self.path = layout / PRIVATE_DIRECTORY / "trash"
        self._files = files_of(layout)

    def new(self, now: float) -> Path:
        """Where a collection is to put what it takes out of ``blobs``; nothing is made yet."""
        return self.path / f"{int(now)}-{os.urandom(4).hex()}"

    def find(self, digest: str) -> Path | None:
        """Where the blob lies in here."""
        algorithm, _, encoded = digest.partition(":")
        for collection in self._collections():
            path = collection / algorithm / encoded
            if self._files.is_file(path):
                return path
        return None

    def open(self, digest: str) -> int | None:
        """A descriptor of the blob in here, which the caller closes; None: it is not here."""
        path = self.find(digest)
        return None if path is None else self._files.open(path)

    def restore(self, digest: str) -> bool:
        """Put a blob back where it was, as one that was just used. False: it is not here, or may not be moved."""
        path = self.find(digest)
        if path is None:
            return False
        target = self._layout / "blobs" / path.parent.name / path.name
        try:
            # Young first: a collection that comes now must not take it away again.
            self._files.touch(path)
            make_directory(target.parent, self._layout)
            self._files.rename(path, target)
        except FileNotFoundError:
            return target.is_file()  # another one was quicker, to put it back or to delete it
        except OSError:
            return False
        return True

    def blobs(self) -> Iterator[Trashed]:
        """All that lies here."""
        for collection in self._collections():
            since = float(collection.name.partition("-")[0])
            for algorithm in self._below(collection):
                for path in self._below(algorithm):
                    with suppress(FileNotFoundError):
                        found = self._files.lstat(path)
                        if stat.S_ISREG(found.st_mode):
                            yield Trashed(f"{algorithm.name}:{path.name}", path, found.st_size, since)

    def tidy(self) -> None:
        """Remove what is empty."""
        for collection in self._collections():
            with suppress(OSError):
                for algorithm in self._below(collection):
                    self._files.rmdir(algorithm)
                self._files.rmdir(collection)

    def _below(self, directory: Path) -> list[Path]:
        """What is in a directory of the trash; nothing where a link stands in its place."""
        try:
            return [directory / name for name in self._files.names(directory)]
        except UnsafePath:
            return []

    def _collections(self) -> list[Path]:
        names = sorted(self._files.names(self.path), reverse=True)
        return [self.path / name for name in names if name.partition("-")[0].isdigit()]
