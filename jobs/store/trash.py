"""Where a garbage collection puts blobs first, and who misses one finds it again (relayer.md 4.2, point 6).

``.layerfarm/trash/<seconds>-<random>/<algorithm>/<hex>``: the seconds are those of the collection, on the store's
clock. A later collection deletes what nobody came for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfarm.jobs.store.durable import make_directory
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

    def new(self, now: float) -> Path:
        """Where a collection is to put what it takes out of ``blobs``; nothing is made yet."""
        return self.path / f"{int(now)}-{os.urandom(4).hex()}"

    def find(self, digest: str) -> Path | None:
        """Where the blob lies in here."""
        algorithm, _, encoded = digest.partition(":")
        for collection in self._collections():
            path = collection / algorithm / encoded
            if path.is_file():
                return path
        return None

    def restore(self, digest: str) -> bool:
        """Put a blob back where it was, as one that was just used. False: it is not here, or may not be moved."""
        path = self.find(digest)
        if path is None:
            return False
        target = self._layout / "blobs" / path.parent.name / path.name
        try:
            # Young first: a collection that comes now must not take it away again.
            os.utime(path)
            make_directory(target.parent, self._layout)
            path.rename(target)
        except FileNotFoundError:
            return target.is_file()  # another one was quicker, to put it back or to delete it
        except OSError:
            return False
        return True

    def blobs(self) -> Iterator[Trashed]:
        """All that lies here."""
        for collection in self._collections():
            since = float(collection.name.partition("-")[0])
            for path in collection.glob("*/*"):
                with suppress(FileNotFoundError):
                    yield Trashed(f"{path.parent.name}:{path.name}", path, path.lstat().st_size, since)

    def tidy(self) -> None:
        """Remove what is empty."""
        for collection in self._collections():
            with suppress(OSError):
                for algorithm in collection.iterdir():
                    algorithm.rmdir()
                collection.rmdir()

    def _collections(self) -> list[Path]:
        try:
            names = sorted(os.listdir(self.path), reverse=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.path / name for name in names if name.partition("-")[0].isdigit()]
