"""Small files of a layout that are kept for some hours: ``.layerfarm/<kind>/<hour>/<name>``.

The hours are those of the store's clock. Old ones are removed by whoever writes the first file of a later hour.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from layerfarm.jobs.store.durable import files_of, make_directory, replace_file
from layerfarm.jobs.store.indexfile import PRIVATE_DIRECTORY, IndexFile, read_file

_HOUR: Final = 3600


class Hours:
    """The files of one kind. ``kept``: hours that are kept, beside the one that it is."""

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
        self._replace(directory / name, content)

    def change(self, name: str, content: bytes) -> None:
        """Put ``content`` into a file that was written, which is kept no longer for it; nothing if there is none."""
        path = self._find(name)
        if path is not None:
            self._replace(path, content)

    def read(self, name: str) -> bytes | None:
        """What was written last; None: nothing, or long ago.

        Raises:
            StoreError: it cannot be read.
        """
        path = self._find(name)
        return None if path is None else read_file(path, "document_bytes", self._layout)

    def _replace(self, path: Path, content: bytes) -> None:
        staging = self._layout / PRIVATE_DIRECTORY / "ingest"
        for each in (path.parent, staging):
            make_directory(each, self._layout)
        replace_file(path, content, staging, self._layout)

    def _find(self, name: str) -> Path | None:
        for hour in sorted(self._hours(), reverse=True):
            path = self._directory / str(hour) / name
            if self._files.is_file(path):
                return path
        return None

    def _hours(self) -> list[int]:
        return [int(name) for name in self._files.names(self._directory) if name.isdigit()]
