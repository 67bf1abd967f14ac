"""What cannot be kept beside a store, because that may only be read: kept in the user's cache directory instead."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import LayoutExists, StoreError
from layerfarm.jobs.store.durable import explained, files_of
from layerfarm.jobs.store.indexfile import PRIVATE_DIRECTORY
from layerfarm.jobs.store.janitor import janitor
from layerfarm.jobs.store.layout import Layout
from layerfarm.jobs.store.notes import stale_notes

_ABANDONED: Final = 24 * 3600.0
"""Seconds after which the work of a job that was killed goes."""


def may_write(layout: Layout) -> bool:
    """False: this process cannot write into the layout, for want of a right or because its filesystem is read-only."""
    private = layout.path / PRIVATE_DIRECTORY
    return os.access(private if private.exists() else layout.path, os.W_OK | os.X_OK, effective_ids=True)


def cache_path() -> Path:
    """``$XDG_CACHE_HOME/layerfarm``, by default ``~/.cache/layerfarm`` (XDG Base Directory Specification)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "layerfarm"


def user_cache() -> Layout:
    """The layout there, made if there is none; it holds notes and work of jobs, and no blobs. Old ones go now.

    What it holds is believed, so it is this user's alone: nobody else can have put anything into it.

    Raises:
        StoreError: it cannot be made, or is another user's (root's $HOME is that of an ordinary user, say).
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
    for note in stale_notes(layout, time.time()):
        with suppress(OSError):
            files_of(path).unlink(note)
    return layout


def _make_private(path: Path) -> None:
    """
    Raises:
        StoreError: the directory, or a link that leads to it, is another user's.
    """
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
