"""``index.json``: its file, changed by one writer at a time (umoci #146)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store.atomic_file import (
    PRIVATE_DIRECTORY,
    explained,
    files_of,
    new_file,
    read_file,
    rename_durably,
    sync_renames,
)
from layerfarm.jobs.store.index_text import IndexText
from layerfarm.jobs.store.locks import Lock, LockLost

ResultT = TypeVar("ResultT")

LOCK_NAME: Final = "index.lock"
"""The only file that is directly in the private directory."""
_LOSSES: Final = 10
"""Attempts of an operation whose lock is lost, or ignored by another tool."""
_RECENT: Final = 2
"""Indexes that this process caches; a large one takes three times its bytes."""
_recent: dict[Path, IndexText] = {}
_guard = threading.Lock()
_steady = threading.local()
"""Attribute ``texts``: by path, the indexes that this thread does not read again (:meth:`IndexFile.steady`)."""


class IndexFile:
    """The index of the layout at ``layout``."""

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self.path = layout / "index.json"
        self._lock = layout / PRIVATE_DIRECTORY / LOCK_NAME
        self._next = layout / PRIVATE_DIRECTORY / "next-index"

    def read(self) -> IndexText:
        """Read the index as it is now.

        Raises:
            MalformedDocument: it does not parse.
            LimitExceeded: it is too large.
        """
        raw, where = self.raw(), str(self.path)
        known = _recent.get(self.path)
        if known is not None and known.is_of(raw):
            return known
        text = (known and known.goes_on(raw, where)) or IndexText.parse(raw, where)
        _remember(self.path, text)
        return text

    def seen(self) -> IndexText:
        """Return the index as this thread sees it: as it is now, or within :meth:`steady` as it was. Raises as read."""
        return _steady_texts().get(self.path) or self.read()

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Let :meth:`seen` read the index once, for this thread, with the changes that it makes meanwhile."""
        texts = _steady_texts()
        if self.path in texts:
            yield
            return
        texts[self.path] = self.read()
        try:
            yield
        finally:
            del texts[self.path]

    def raw(self) -> bytes:
        """Return the bytes of the file."""
        return read_file(self.path, "index_bytes", self._layout, newest=True)

    def update(self, change: Callable[[IndexText], IndexText]) -> None:
        """Replace the index by ``change(index)``, which is called under the lock and must be quick."""

        def under(lock: Lock) -> None:
            old = self.settled()
            self.replace(lock, old, change(old))

        self.holding(under)

    def holding(self, work: Callable[[Lock], ResultT]) -> ResultT:
        """Return ``work(lock)``, called under the lock; it is called again if it raises LockLost.

        Raises:
            StoreError: it raises that each time.
        """
        for _ in range(_LOSSES):
            with suppress(LockLost), self.lock() as lock:
                lock.take()
                return work(lock)
        raise StoreError(
            f"index.json was changed {_LOSSES} times by others, although this process had locked it",
            where=self._layout,
            hint="do other tools write tags, or does the file server end this host's leases? see docs/store.md#on-nfs",
        )

    def settled(self) -> IndexText:
        """Read the index, which no earlier holder of the lock changes any more; for the holder of the lock.

        A client of NFS that was parted from its server repeats its last rename when it returns, after another host
        took the lock. Its source is removed here, so that it fails.
        """
        files = files_of(self._layout)
        with explained("unfinished index cannot be removed", self._next):
            for name in files.names(self._next):
                with suppress(FileNotFoundError):
                    files.remove(self._next / name)
        return self.read()

    def replace(self, lock: Lock, old: IndexText, new: IndexText) -> None:
        """Replace ``old``, which :meth:`settled` returned to this holder of the lock.

        Raises:
            LockLost: another holder may have changed the index meanwhile; it is unchanged by this one.
        """
        if new is old:
            return
        raw = new.encode()
        bounds = limits()
        if len(raw) > bounds.index_bytes:
            raise bounds.exceeded("index_bytes", "index.json would be larger than {} bytes", self.path)
        with explained("index.json cannot be updated", self._layout):
            self._write(lock, old, raw)
        _remember(self.path, new)
        if self.path in _steady_texts():
            _steady_texts()[self.path] = new

    def _write(self, lock: Lock, old: IndexText, raw: bytes) -> None:
        staged = new_file(self._next, self._layout, raw)
        try:
            # A lost lock is free or another's. If it is free, the index shows whether another changed it meanwhile.
            if not lock.take_if_free() or not old.is_of(self.raw()):
                raise LockLost
            sync_renames()
            rename_durably(staged, self.path, self._layout)
            sync_renames()
        except BaseException as error:
            with suppress(OSError):
                files_of(self._layout).unlink(staged)
            if isinstance(error, FileNotFoundError):
                raise LockLost from error
            raise

    def now(self) -> float:
        """Return seconds on the clock of the file system that dates the blobs (relayer.md 4.2, point 6)."""
        with self.lock() as lock:
            return lock.touch()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude every other writer."""
        with self.lock() as lock:
            lock.take()
            yield

    @contextmanager
    def lock(self) -> Iterator[Lock]:
        """Open the lock of the index's writers, without taking it."""
        with explained("index.json cannot be locked", self._layout):
            lock = Lock(self._lock, self._layout)
        with lock:
            yield lock


def _steady_texts() -> dict[Path, IndexText]:
    texts: dict[Path, IndexText] = _steady.__dict__.setdefault("texts", {})
    return texts


def _remember(path: Path, text: IndexText) -> None:
    with _guard:
        _recent.pop(path, None)
        _recent[path] = text
        while len(_recent) > _RECENT:
            del _recent[next(iter(_recent))]
