"""Leases: the blobs that a job needs before a tag leads to them, and that gc therefore leaves (relayer.md 4.2).

A lease is a directory, ``.layerfarm/leases/<job>/``, with a file ``lease`` that says for how long it holds after its
last touch, and one empty file for each digest. Making such a file is one step, seen at once by every host and in need
of no fsync, and any number of processes may do so; whoever collects garbage, on whichever host, needs no Redis to see
it. Time is the store's: that of the touch, and that of the collection.

* It is taken when a job is queued, over all that the images of its request lead to
  (:func:`layerfarm.jobs.flows.inputs.lease_inputs`). A queued job has nobody to beat for it, be it for a night without
  a worker. So its lease holds as long as the farm itself remembers a job that does not advance
  (``LAYERFARM_JOB_EXPIRES``).
* Every process that works for the job says so with :func:`holding`. Whatever it stores, or finds in the store and
  counts on, is added to the lease *before* that is reported, so there is no moment at which a blob is known to the job
  and not to the lease. While it works, the lease is touched. What a unit made has to outlive the unit and its
  process, because the job's record speaks of it; so outputs hold as long as inputs.
* The end of the job releases it. Where nobody is left to do so it runs out, and the next collection removes it.

A job of ``layerfarm.worker.engine.local`` ends with its process: its lease holds an hour after the last touch.
"""

from __future__ import annotations

import math
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from layerfarm.jobs.errors import LayerfarmError, StoreError
from layerfarm.jobs.store.descriptor import check_digest
from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.durable import create_file, explained, files_of, make_directory, write_all
from layerfarm.jobs.store.indexfile import PRIVATE_DIRECTORY, read_file

LOCAL: Final = 3600.0
"""Seconds for which the lease of a job without a queue holds after its last touch."""
_UNTOLD: Final = 24 * 3600.0
"""Seconds for one that does not say: its taker died between making the directory and saying it."""
_BEATS: Final = 4
"""Touches within the time for which a lease holds."""
_TERM: Final = "lease"
_HOLDER: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Term(Document):
    """What the file ``lease`` says."""

    seconds: float = Field(gt=0)
    """After the last touch."""


@dataclass(frozen=True)
class Lease:
    """One that holds."""

    holder: str
    """The job."""
    expires: float
    """Seconds on the store's clock, unless it is touched."""
    digests: frozenset[str]


class Leases:
    """The leases in one layout."""

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self._directory = layout / PRIVATE_DIRECTORY / "leases"
        self._files = files_of(layout)

    def add(self, holder: str, seconds: float, digests: Iterable[str]) -> None:
        """Take a lease for ``holder``, or add to the one that it has.

        Raises:
            StoreError: the store cannot be written.
        """
        directory = self._of(holder)
        with explained("lease cannot be taken", directory):
            try:
                self._add(directory, seconds, digests)
            except PermissionError:
                # Another user took it, when the job was queued, and shares the store but not that directory.
                self._add(directory.with_name(f"{holder}.{os.geteuid()}"), seconds, digests)

    def touch(self, holder: str) -> None:
        """Let the lease, if there is one, hold for its time from now on."""
        for directory in self._all_of(holder):
            # Its owner's touch it is, or root's.
            with suppress(FileNotFoundError, PermissionError):
                self._files.touch(directory / _TERM)

    def release(self, holder: str) -> None:
        """End the lease; fine if there is none."""
        for directory in self._all_of(holder):
            self._remove(directory)

    def live(self, now: float) -> list[Lease]:
        """Those that hold at ``now`` seconds on the store's clock."""
        return [lease for lease, _ in self._found() if lease.expires > now]

    def sweep(self, now: float, *, dry_run: bool = False) -> list[Path]:
        """Remove those that ran out; returns them."""
        ended = [directory for lease, directory in self._found() if lease.expires <= now]
        for directory in ended if not dry_run else ():
            self._remove(directory)
        return ended

    # --- inside ------------------------------------------------------------------------------------

    def _of(self, holder: str) -> Path:
        if not _HOLDER.fullmatch(holder):
            raise StoreError("not a name that can hold a lease", where=holder[:200])
        return self._directory / holder

    def _all_of(self, holder: str) -> list[Path]:
        first = self._of(holder)
        # Of a thousand queued jobs, perhaps: a glob would take ten times as long.
        others = [name for name in self._files.names(self._directory) if name.startswith(f"{holder}.")]
        return [path for path in (first, *map(self._directory.joinpath, others)) if self._files.is_directory(path)]

    def _remove(self, directory: Path) -> None:
        with suppress(OSError):
            self._files.remove(directory)

    def _add(self, directory: Path, seconds: float, digests: Iterable[str]) -> None:
        make_directory(directory, self._layout)
        if not self._files.is_file(directory / _TERM):
            self._say(directory, seconds)
        for digest in digests:
            name = directory / check_digest(digest).replace(":", "_", 1)
            flags = os.O_WRONLY | os.O_CREAT
            try:
                fd = self._files.open(name, flags)
            except FileNotFoundError:
                # Swept or released this moment: whoever works for it holds it all the same.
                make_directory(directory, self._layout)
                self._say(directory, seconds)
                fd = self._files.open(name, flags)
            os.close(fd)

    def _say(self, directory: Path, seconds: float) -> None:
        fd, temporary = create_file(directory, self._layout)
        try:
            write_all(fd, encode_document(Term(seconds=seconds)))
        finally:
            os.close(fd)
        self._files.rename(temporary, directory / _TERM)

    def _found(self) -> Iterator[tuple[Lease, Path]]:
        for name in sorted(self._files.names(self._directory)):
            directory = self._directory / name
            with suppress(FileNotFoundError):
                found = self._files.lstat(directory)
                if stat.S_ISDIR(found.st_mode):
                    yield self._read(name.partition(".")[0], directory, found.st_mtime), directory

    def _read(self, holder: str, directory: Path, touched: float) -> Lease:
        seconds, term = _UNTOLD, directory / _TERM
        # Between release and removal the file is gone first or last; what is left holds for a while.
        with suppress(FileNotFoundError, LayerfarmError):
            touched = self._files.lstat(term).st_mtime
            seconds = parse_document(Term, read_file(term, "document_bytes", self._layout), _TERM).seconds
        digests = set()
        for name in self._files.names(directory):
            with suppress(ValueError):
                digests.add(check_digest(name.replace("_", ":", 1)))
        return Lease(holder, touched + seconds, frozenset(digests))


# --- for whom this process works ------------------------------------------------------------------


class _Held:
    """The lease of the job that this thread works for, in every layout that the work comes to."""

    def __init__(self, holder: str, seconds: float) -> None:
        self.holder = holder
        self._seconds = seconds
        self._known: dict[Path, set[str]] = {}
        self.due = 0.0
        """When it is to be renewed next, by the monotonic clock."""

    def add(self, layout: Path, digest: str) -> None:
        known = self._known.setdefault(layout, set())
        if digest not in known:
            Leases(layout).add(self.holder, self._seconds, (digest,))
            known.add(digest)

    def start(self, layouts: Iterable[Path]) -> None:
        for layout in layouts:
            self._known.setdefault(layout, set())
        self.renew()

    def renew(self) -> None:
        self.due = time.monotonic() + self._seconds / _BEATS
        for layout in list(self._known):
            with suppress(OSError):
                Leases(layout).touch(self.holder)


class _Renewer:
    """Renews what this process holds, in one thread: most work is done long before its lease has to be renewed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a child of fork(2), which holds nothing and has no thread but one."""
        self._held: set[_Held] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._next = math.inf

    def add(self, held: _Held) -> None:
        with self._changed:
            self._held.add(held)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="layerfarm-lease", daemon=True)
                self._thread.start()
            elif held.due < self._next:
                self._changed.notify()

    def remove(self, held: _Held) -> None:
        with self._changed:
            self._held.discard(held)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._next = min((held.due for held in self._held), default=math.inf)
                left = self._next - time.monotonic()
                if left > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                due = [held for held in self._held if held.due <= time.monotonic()]
            for held in due:
                held.renew()


_renewer = _Renewer()
os.register_at_fork(after_in_child=_renewer.forget)

_working_for: ContextVar[_Held | None] = ContextVar("layerfarm_lease", default=None)


@contextmanager
def holding(holder: str, seconds: float, layouts: Iterable[Path] = ()) -> Iterator[None]:
    """Work for ``holder``: its lease is kept alive, and what this thread stores or counts on is added to it.

    Parameters:
        seconds: for which the lease holds after a touch.
        layouts: where it may have one already.
    """
    held = _Held(holder, seconds)
    held.start(layouts)
    _renewer.add(held)
    before = _working_for.set(held)
    try:
        yield
    finally:
        _working_for.reset(before)
        _renewer.remove(held)


def cover(layout: Path, digest: str) -> None:
    """Add a blob to the lease of the job that this thread works for, if it works for one.

    Raises:
        StoreError: the store cannot be written.
    """
    held = _working_for.get()
    if held is not None:
        held.add(layout, digest)


def at_work() -> str:
    """The job that this thread works for; empty: none."""
    held = _working_for.get()
    return held.holder if held is not None else ""
