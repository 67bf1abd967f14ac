"""Small results kept beside the store, so that the next job need not compute them again.

A note is a cache: whoever finds none, or one that does not parse, computes what it would say. Those that
nobody has read for a month go with the next garbage collection.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from layerfarm.jobs.errors import StoreError, UnsafePath
from layerfarm.jobs.store.durable import explained, files_of, make_directory, replace_file
from layerfarm.jobs.store.indexfile import PRIVATE_DIRECTORY
from layerfarm.jobs.store.layout import Layout

UNREAD = 30 * 24 * 3600.0
"""Seconds for which a note stays unread before it goes."""


def read_note(layout: Layout, kind: str, name: str) -> bytes | None:
    """What was noted; None: nothing, or it cannot be read. The note counts as just used."""
    path, files = note_path(layout, kind, name), files_of(layout.path)
    try:
        content = files.read(path)
    except (OSError, UnsafePath):
        return None
    with suppress(OSError):
        files.touch(path)
    return content


def write_note(layout: Layout, kind: str, name: str, content: bytes) -> bool:
    """Keep ``content``, in one step. False: it cannot be written (a store that may only be read, a full disk)."""
    directory = _directory(layout) / kind
    staging = layout.path / PRIVATE_DIRECTORY / "ingest"
    try:
        with explained("note cannot be kept", directory):
            make_directory(directory, layout.path)
            make_directory(staging, layout.path)
            replace_file(directory / name, content, staging, layout.path)
    except StoreError:
        return False
    return True


def note_path(layout: Layout, kind: str, name: str) -> Path:
    """The file of a note, for one too large to be held in memory; its reader touches it, as :func:`read_note` does."""
    return _directory(layout) / kind / name


def stale_notes(layout: Layout, now: float) -> list[Path]:
    """The notes that have not been read for :data:`UNREAD` seconds."""
    files, top = files_of(layout.path), _directory(layout)
    found = []
    for directory in (top / kind for kind in sorted(files.names(top))):
        for path in (directory / name for name in sorted(files.names(directory))):
            with suppress(FileNotFoundError):
                if files.lstat(path).st_mtime <= now - UNREAD:
                    found.append(path)
    return found


def _directory(layout: Layout) -> Path:
    return layout.path / PRIVATE_DIRECTORY / "notes"
