"""What jobs of a farm have done to a store's index, each once.

A process that is paused just before it gives a tag, and wakes when its job was done by another and a newer job has
moved the tag, would move it back. So a job's tag is given under a name of the job's attempt, and the holder of the
index's lock writes down under that name what is to change before it changes, and that it is done after.
``.layerfarm/committed/<hour>/<name>``, kept as ``jobs.store.ended`` keeps its files.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from jobs.store.document import Document, encode_document, parse_document
from jobs.store.durable import make_directory, replace_file
from jobs.store.indexfile import PRIVATE_DIRECTORY, IndexFile, read_file

_HOUR: Final = 3600
_KEPT: Final = 24
"""Hours that are kept, beside the one that it is: longer than a process is paused and woken again."""


class Commit(Document):
    """One change of the index by one attempt at a job."""

    tag: str
    before: list[str]
    """Digests that the tag named; usually none or one."""
    after: str
    done: bool = False


class Commits:
    """Those of one layout. To be used under the lock of its index."""

    def __init__(self, layout: Path, index: IndexFile) -> None:
        self._layout = layout
        self._index = index
        self._directory = layout / PRIVATE_DIRECTORY / "committed"

    def is_done(self, name: str, tag: str, now: list[str]) -> bool:
        """Whether the change under ``name`` was made. ``now``: the digests that ``tag`` names.

        If the index does not say it: between the two writings of a holder that died, the tag is as it was before, or
        somebody else has given it since, after whom it is not given again.
        """
        commit = self._read(name)
        if commit is None:
            return False
        return commit.done or commit.tag != tag or now != commit.before

    def begin(self, name: str, commit: Commit) -> None:
        """Write down what is to change."""
        hour = int(self._index.now()) // _HOUR
        directory = self._directory / str(hour)
        if not directory.is_dir():
            self._forget(hour - _KEPT)
        self._write(directory / name, commit)

    def end(self, name: str, commit: Commit) -> None:
        """It has changed."""
        path = self._find(name)
        if path is not None:
            self._write(path, commit.model_copy(update={"done": True}))

    def _write(self, path: Path, commit: Commit) -> None:
        staging = self._layout / PRIVATE_DIRECTORY / "ingest"
        for each in (path.parent, staging):
            make_directory(each, self._layout)
        replace_file(path, encode_document(commit), staging, self._layout)

    def _read(self, name: str) -> Commit | None:
        path = self._find(name)
        return None if path is None else parse_document(Commit, read_file(path, "document_bytes"), str(path))

    def _find(self, name: str) -> Path | None:
        for hour in sorted(self._hours(), reverse=True):
            path = self._directory / str(hour) / name
            if path.is_file():
                return path
        return None

    def _forget(self, oldest: int) -> None:
        for hour in self._hours():
            if hour < oldest:
                shutil.rmtree(self._directory / str(hour), ignore_errors=True)

    def _hours(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self._directory) if name.isdigit()]
        except FileNotFoundError:
            return []
