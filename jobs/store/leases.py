"""Leases: blobs that a job needs before a tag leads to them; garbage collection keeps those (relayer.md 4.2).

A lease is a directory, ``.layerfarm/leases/<job>/``, with a file ``lease``, which holds its duration after the last
touch, and one empty file for each digest. Creating such a file is one step that every host sees at once and that needs
no fsync; any number of processes may do so, and a collector on any host needs no Redis to see it. Time is the store's.

* It is taken when a job is queued, for all blobs that the images of its request lead to
  (:func:`layerfarm.jobs.flows.inputs.lease_inputs`). No process renews it while the job is queued, perhaps for a night
  without a worker, so it lasts as long as the farm keeps a job that does not advance (``LAYERFARM_JOB_EXPIRES``).
* Every process that works for the job uses :func:`holding`. A blob that it stores, or finds and relies on, is added to
  the lease *before* that is reported: no blob is ever known to the job and not to the lease. The lease is touched
  while the process works. The job's record names the outputs of a unit, which therefore last as long as inputs.
* The end of the job releases it. If no process is left to do so it expires, and the next collection removes it.

A user who cannot write into another user's lease of the job takes one in ``.layerfarm/leases-of-others/<job>.<uid>``.
Each step of a job lists that directory, which is nearly always empty; ``leases`` has an entry for each queued job.

A job of ``layerfarm.worker.engine.local`` ends with its process: its lease lasts an hour after the last touch.
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
from layerfarm.jobs.store.atomic_file import PRIVATE_DIRECTORY, explained, files_of, make_directory, new_file, read_file
from layerfarm.jobs.store.descriptor import check_digest
from layerfarm.jobs.store.document import Document, encode_document, parse_document

LOCAL: Final = 3600.0
"""Seconds after its last touch for which the lease of a job without a queue lasts."""
_UNTOLD: Final = 24 * 3600.0
"""Seconds for a lease without a duration: its holder died between creating the directory and the file."""
_BEATS: Final = 4
"""Touches within the duration of a lease."""
_JUST_NOW: Final = 1.0
"""Seconds after a touch in which another one is pointless."""
_TERM: Final = "lease"
_HOLDER: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Term(Document):
    """The content of the file ``lease``."""

    seconds: float = Field(gt=0)
    """Duration after the last touch."""


@dataclass(frozen=True)
class Lease:
    """A lease that has not expired."""

    holder: str
    """Id of the job."""
    expires: float
    """Seconds on the store's clock, unless it is touched."""
    digests: frozenset[str]


class Leases:
    """The leases in one layout."""

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self._directory = layout.joinpath(PRIVATE_DIRECTORY, "leases")
        self._of_others = layout.joinpath(PRIVATE_DIRECTORY, "leases-of-others")
        self._files = files_of(layout)

    def add(self, holder: str, seconds: float, digests: Iterable[str], *, taken: bool = False) -> None:
        """Take a lease for ``holder``, or add to its lease; ``taken``: the caller has taken it before.

        Raises:
            StoreError: the store cannot be written.
        """
        directory = self._of(holder)
        with explained("lease cannot be taken", directory):
            try:
                self._add(directory, seconds, digests, taken)
            except PermissionError:
                # Another user of the store queued the job and owns that directory.
                self._add(self._of_others / f"{holder}.{os.geteuid()}", seconds, digests, taken)

    def touch(self, holder: str) -> None:
        """Renew the lease, if there is one."""
        for directory in self._all_of(holder):
            # Only its owner and root may touch it.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                self._files.touch(directory / _TERM)

    def release(self, holder: str) -> None:
        """End the lease; fine if there is none."""
        for directory in self._all_of(holder):
            self._remove(directory)

    def live(self, now: float) -> list[Lease]:
        """Return the leases that have not expired at ``now``, in seconds on the store's clock."""
        return [lease for lease, _ in self._found() if lease.expires > now]

    def sweep(self, now: float, *, dry_run: bool = False) -> list[tuple[Path, int]]:
        """Remove the expired leases; return their directories and bytes."""
        ended = [(each, self._files.size(each)) for lease, each in self._found() if lease.expires <= now]
        for directory, _ in ended if not dry_run else ():
            self._remove(directory)
        return ended

    # --- inside ------------------------------------------------------------------------------------

    def _of(self, holder: str) -> Path:
        if not _HOLDER.fullmatch(holder):
            raise StoreError("not a valid name of a lease's holder", where=holder[:200])
        return self._directory / holder

    def _all_of(self, holder: str) -> list[Path]:
        names = [name for name in self._files.names(self._of_others) if name.startswith(f"{holder}.")]
        return [self._of(holder), *map(self._of_others.joinpath, names)]

    def _remove(self, directory: Path) -> None:
        with suppress(OSError):
            self._files.remove(directory)

    def _add(self, directory: Path, seconds: float, digests: Iterable[str], taken: bool) -> None:
        if not taken and not self._files.is_file(directory / _TERM):
            make_directory(directory, self._layout, durable=False)
            self._say(directory, seconds)
        for digest in digests:
            name = directory / check_digest(digest).replace(":", "_", 1)
            flags = os.O_WRONLY | os.O_CREAT
            try:
                fd = self._files.open(name, flags)
            except FileNotFoundError:
                # Just swept or released: its holder takes it again.
                make_directory(directory, self._layout, durable=False)
                self._say(directory, seconds)
                fd = self._files.open(name, flags)
            os.close(fd)

    def _say(self, directory: Path, seconds: float) -> None:
        term = new_file(directory, self._layout, encode_document(Term(seconds=seconds)), durable=False)
        self._files.rename(term, directory / _TERM, unique=True)

    def _found(self) -> Iterator[tuple[Lease, Path]]:
        for top in (self._directory, self._of_others):
            for directory in map(top.joinpath, sorted(self._files.names(top))):
                with suppress(FileNotFoundError):
                    found = self._files.lstat(directory)
                    if stat.S_ISDIR(found.st_mode):
                        holder = directory.name.partition(".")[0]
                        yield self._read(holder, directory, found.st_mtime), directory

    def _read(self, holder: str, directory: Path, touched: float) -> Lease:
        seconds, term = _UNTOLD, directory / _TERM
        # While a lease is being removed, its file may vanish before the digests: they are kept for a while.
        with suppress(FileNotFoundError, LayerfarmError):
            touched = self._files.lstat(term).st_mtime
            seconds = parse_document(Term, read_file(term, "document_bytes", self._layout), _TERM).seconds
        digests = set()
        for name in self._files.names(directory):
            with suppress(ValueError):
                digests.add(check_digest(name.replace("_", ":", 1)))
        return Lease(holder, touched + seconds, frozenset(digests))


# --- the job of this thread -----------------------------------------------------------------------


class _Held:
    """The lease of the current job, in every layout that it uses."""

    def __init__(self, holder: str, seconds: float) -> None:
        self.holder = holder
        self._seconds = seconds
        self._known: dict[Path, tuple[Leases, set[str]]] = {}
        """By layout: its leases, and the digests that this holding has added to its own."""
        self.due = 0.0
        """The time of its next renewal, by the monotonic clock."""

    def add(self, layout: Path, digest: str) -> None:
        leases, known = self._in(layout)
        if digest not in known:
            leases.add(self.holder, self._seconds, (digest,), taken=bool(known))
            known.add(digest)

    def start(self, layouts: Iterable[Path]) -> None:
        """Renew, unless the previous step of the job did so just now, in this process."""
        for layout in layouts:
            self._in(layout)
        interval = self._seconds / _BEATS
        what, when = (self.holder, *self._known), time.monotonic()
        before, then = _renewer.started
        if before == what and when - then < min(_JUST_NOW, interval):
            self.due = then + interval
        else:
            _renewer.started = what, when
            self.renew()

    def renew(self) -> None:
        self.due = time.monotonic() + self._seconds / _BEATS
        for leases, _ in list(self._known.values()):
            with suppress(OSError):
                leases.touch(self.holder)

    def _in(self, layout: Path) -> tuple[Leases, set[str]]:
        return self._known.get(layout) or self._known.setdefault(layout, (Leases(layout), set()))


class _Renewer:
    """Renews all leases that this process holds, in one thread, started with the first."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Reset in a child of fork(2), which holds no lease and has only one thread."""
        self._held: set[_Held] = set()
        self.started: tuple[tuple[object, ...], float] = (), 0.0
        """Holder and layouts whose lease was last renewed by :meth:`_Held.start`, and when."""
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
    """Work for ``holder``: renew its lease, and add to it the blobs that this thread stores or relies on.

    Parameters:
        seconds: duration of the lease after a touch.
        layouts: layouts in which the holder may have a lease already.
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
    """Add a blob to the lease of this thread's job, if it has one.

    Raises:
        StoreError: the store cannot be written.
    """
    held = _working_for.get()
    if held is not None:
        held.add(layout, digest)


def at_work() -> str:
    """Return the job of this thread; empty: none."""
    held = _working_for.get()
    return held.holder if held is not None else ""
