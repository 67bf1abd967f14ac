"""Small results kept in a layout, so that the next job need not compute them again; beside it if it is read-only.

A result that is missing or does not parse is computed again. Garbage collection removes those unread for a month.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import LayoutExists, StoreError, UnsafePath
from layerfarm.jobs.store.atomic_file import PRIVATE_DIRECTORY, explained, files_of, replace_file
from layerfarm.jobs.store.janitor import janitor
from layerfarm.jobs.store.layout import Layout

UNREAD: Final = 30 * 24 * 3600.0
"""Seconds after its last reading at which a result is removed."""
_ABANDONED: Final = 24 * 3600.0
"""Seconds after which the files of a killed job are removed from the user's cache."""


def read_result(layout: Layout, kind: str, name: str) -> bytes | None:
    """A kept result, now marked as used; None: there is none, or it cannot be read."""
    path, files = result_path(layout, kind, name), files_of(layout.path)
    try:
        content = files.read(path)
    except (OSError, UnsafePath):
        return None
    with suppress(OSError):
        files.touch(path)
    return content


def write_result(layout: Layout, kind: str, name: str, content: bytes) -> bool:
    """Keep ``content``, in one step. False: it cannot be written (a read-only store, a full disk)."""
    try:
        replace_file(result_path(layout, kind, name), content, layout.path)
    except (OSError, StoreError):
        return False
    return True


def result_path(layout: Layout, kind: str, name: str) -> Path:
    """The file of a result, for one too large to be held in memory; its reader touches it, as :func:`read_result`."""
    return _directory(layout) / kind / name


def stale_results(layout: Layout, now: float) -> list[Path]:
    """The results that have not been read for :data:`UNREAD` seconds."""
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


# --- for a layout that may only be read -----------------------------------------------------------


def may_write(layout: Layout) -> bool:
    """False: this process cannot write into the layout, for lack of a right or on a read-only filesystem."""
    private = layout.path / PRIVATE_DIRECTORY
    return os.access(private if private.exists() else layout.path, os.W_OK | os.X_OK, effective_ids=True)


def cache_path() -> Path:
    """``$XDG_CACHE_HOME/layerfarm``, by default ``~/.cache/layerfarm`` (XDG Base Directory Specification)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "layerfarm"


def user_cache() -> Layout:
    """The layout at :func:`cache_path`, created if missing: it holds results and work files, no blobs; stale ones go.

    Its content is trusted, so nobody else may be able to write it.

    Raises:
        StoreError: it cannot be created, or belongs to another user (root with the $HOME of an ordinary user, say).
    """
    try:
        path = cache_path()
        with suppress(LayoutExists):
            Layout.create(path)
        _make_private(path)
        layout = Layout.open(path)
    except RuntimeError as error:  # of Path.home()
        raise StoreError("there is no home directory to keep a cache in", hint="set $XDG_CACHE_HOME") from error
    except StoreError as error:
        error.hint = "let $XDG_CACHE_HOME name a directory that can be written"
        raise
    janitor(path, _ABANDONED)
    for stale in stale_results(layout, time.time()):
        with suppress(OSError):
            files_of(path).unlink(stale)
    return layout


def _make_private(path: Path) -> None:
    """Raises StoreError if the directory, or a link that leads to it, is another user's."""
    with explained("cache cannot be opened", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if {found.st_uid, path.lstat().st_uid} != {os.geteuid()}:
                raise StoreError("cache is another user's", where=path)
            if found.st_mode & 0o077:
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
