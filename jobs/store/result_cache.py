"""Small results stored in a layout, so that the next job need not compute them again; beside it if it is read-only.

A result that is missing or does not parse is computed again. Garbage collection removes those unread for a month.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import LayoutExists, StoreError, UnsafePath
from layerfarm.jobs.store.atomic_file import PRIVATE_DIRECTORY, explained, files_of, replace_file
from layerfarm.jobs.store.janitor import janitor
from layerfarm.jobs.store.layout import Layout

UNREAD: Final = 30 * 24 * 3600.0
"""Seconds after the last read at which a result is removed."""
_MOST_BYTES: Final = 1 << 30
"""Bytes of results in the user's cache; beyond them those that were not read for the longest time are removed."""
_ABANDONED: Final = 24 * 3600.0
"""Seconds after which the files of a killed job are removed from the user's cache."""


def read_result(layout: Layout, kind: str, name: str) -> bytes | None:
    """Return a stored result and mark it as used; None: there is none, or it cannot be read."""
    path, files = result_path(layout, kind, name), files_of(layout.path)
    try:
        content = files.read(path)
    except (OSError, UnsafePath):
        return None
    with suppress(OSError):
        files.touch(path)
    return content


def write_result(layout: Layout, kind: str, name: str, content: bytes, *, durable: bool = True) -> bool:
    """Store ``content``, in one step; return False if it cannot be written (a read-only store, a full disk).

    ``durable``: False for content that is checked when it is read: a power cut may leave it damaged.
    """
    try:
        replace_file(result_path(layout, kind, name), content, layout.path, durable=durable)
    except (OSError, StoreError):
        return False
    return True


def result_path(layout: Layout, kind: str, name: str) -> Path:
    """Return the file of a result that is too large for memory; its reader touches it, as :func:`read_result` does."""
    return _directory(layout) / kind / name


def stale_results(layout: Layout, now: float, most_bytes: float = math.inf) -> list[tuple[Path, int]]:
    """Return the results that have not been read for :data:`UNREAD` seconds, and their bytes.

    If the others have more than ``most_bytes``, those that were not read for the longest time are stale, too.
    """
    files, top = files_of(layout.path), _directory(layout)
    found = [
        (status.st_mtime, kind, name, status.st_size)
        for kind in files.names(top)
        for name, status in files.lstats(top / kind)
    ]
    found.sort(reverse=True)
    kept = accumulate(size for _, _, _, size in found)
    return [
        (top / kind / name, size)
        for (read, kind, name, size), total in zip(found, kept, strict=True)
        if read <= now - UNREAD or total > most_bytes
    ]


def _directory(layout: Layout) -> Path:
    return layout.path / PRIVATE_DIRECTORY / "notes"


# --- for a layout that may only be read -----------------------------------------------------------


def may_write(layout: Layout) -> bool:
    """Return False if this process cannot write into the layout, for lack of a right or on a read-only filesystem."""
    private = layout.path / PRIVATE_DIRECTORY
    return os.access(private if private.exists() else layout.path, os.W_OK | os.X_OK, effective_ids=True)


def cache_path() -> Path:
    """Return ``$XDG_CACHE_HOME/layerfarm``, by default ``~/.cache/layerfarm`` (XDG Base Directory Specification)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "layerfarm"


def user_cache() -> Layout:
    """Return the layout at :func:`cache_path`, created if missing, for results and work files; remove stale ones.

    Its content is trusted, so no other user may be able to write it.

    Raises:
        StoreError: it cannot be created, or belongs to another user (say, root with the $HOME of an ordinary user).
    """
    try:
        path = cache_path()
        with suppress(LayoutExists):
            Layout.create(path)
        _make_private(path)
        layout = Layout.open(path)
    except RuntimeError as error:  # of Path.home()
        raise StoreError("no home directory for the cache", hint="set $XDG_CACHE_HOME") from error
    except StoreError as error:
        error.hint = "set $XDG_CACHE_HOME to a writable directory"
        raise
    janitor(path, _ABANDONED)
    for stale, _ in stale_results(layout, time.time(), _MOST_BYTES):
        with suppress(OSError):
            files_of(path).unlink(stale)
    return layout


def _make_private(path: Path) -> None:
    """Raise StoreError if the directory, or a link that leads to it, belongs to another user."""
    with explained("cache cannot be opened", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if {found.st_uid, path.lstat().st_uid} != {os.geteuid()}:
                raise StoreError("cache belongs to another user", where=path)
            if found.st_mode & 0o077:
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
