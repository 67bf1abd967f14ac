"""The inbox of a catalog: a journal on disk of the pushes that must be run, written before they are acknowledged.

Each line is a record with its CRC. A record is durable when :meth:`Inbox.add` or :meth:`Inbox.done` returns; one that
a crash cut off was not acknowledged, and is dropped when the journal is opened. Then, and when the journal has grown,
one record with the state replaces it atomically.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerfarm.jobs.errors import CatalogError, StoreError
from layerfarm.jobs.store.atomic_file import explained, files_of, replace_file, write_all
from layerfarm.jobs.store.locks import lock_if_free


@dataclass
class _State:
    """The content of a journal."""

    remembered: int
    """Number of last events whose repetition is recognized."""
    sequence: int = 0
    pending: dict[str, int] = field(default_factory=dict)
    """By name, the number of its last push."""
    ids: dict[str, None] = field(default_factory=dict)
    """Ids of the last events, oldest first."""
    ran: float | None = None

    def apply(self, record: Mapping[str, Any]) -> None:
        """Apply one record. A record of an unknown form, of a newer version, has no effect."""
        if "push" in record:
            self.sequence = int(record["seq"])
            self.pending |= dict.fromkeys(record["push"], self.sequence)
            self.ids |= dict.fromkeys(record["ids"])
            for oldest in list(self.ids)[: max(0, len(self.ids) - self.remembered)]:
                del self.ids[oldest]
        for name, sequence in record.get("done", {}).items():
            if self.pending.get(name, sequence + 1) <= sequence:
                del self.pending[name]
        if "ran" in record:
            self.ran = float(record["ran"])
        if "state" in record:
            kept = record["state"]
            self.sequence, self.pending, self.ran = int(kept["seq"]), dict(kept["pending"]), kept["ran"]
            self.ids = dict.fromkeys(kept["ids"])

    def record(self) -> dict[str, Any]:
        return {"state": {"seq": self.sequence, "pending": self.pending, "ids": list(self.ids), "ran": self.ran}}


class Inbox:
    """The journal in a catalog's state directory; open in one process only. Not for several threads at once."""

    def __init__(self, layout: Path, directory: Path, *, remembered: int = 50_000, growth: int = 4 << 20) -> None:
        """Open or create it.

        Parameters:
            directory: of the catalog's state, in ``layout``.
            remembered: number of last events whose repetition is recognized.
            growth: bytes appended after which the journal is replaced.

        Raises:
            StoreError: the journal cannot be read or written.
            CatalogError: another process has it open.
        """
        self._layout = layout
        self._path = directory / "inbox.journal"
        self._fd = -1
        self._size = self._start = 0
        self._state = _State(remembered)
        self._growth = growth
        self._files = files_of(layout)
        with explained("inbox cannot be opened", self._path):
            lock = lock_if_free(directory / "inbox.lock", layout)
        if lock is None:
            raise CatalogError("another process serves this catalog", where=directory)
        self._lock = lock
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.close()

    @property
    def is_open(self) -> bool:
        """Return False after a failed write, until the next one succeeds."""
        return self._fd >= 0

    @property
    def pending(self) -> Mapping[str, int]:
        """The pushes that must be run: names, with the number of the last push of each."""
        return self._state.pending

    @property
    def ran(self) -> float | None:
        """Time of the start of the last scheduled run, in seconds since the epoch."""
        return self._state.ran

    def knows(self, event: str | None) -> bool:
        """Return True for the id of an event that was added already."""
        return event in self._state.ids

    def add(self, names: Collection[str], events: Iterable[str] = ()) -> None:
        """Record pushes of these names, by events with these ids, durably.

        Raises:
            StoreError: they cannot be recorded; nothing has changed.
        """
        self._ready()
        self._append({"push": sorted(names), "seq": self._state.sequence + 1, "ids": list(events)})

    def done(self, names: Mapping[str, int]) -> None:
        """Record that the pushes up to these numbers were run, durably. Raises as :meth:`add`."""
        self._ready()
        self._append({"done": dict(names)})

    def scheduled(self, when: float) -> None:
        """Record the start of a scheduled run, durably. Raises as :meth:`add`."""
        self._ready()
        self._append({"ran": when})

    # --- inside ----------------------------------------------------------------------------------

    def _open(self) -> None:
        with explained("inbox cannot be opened", self._path):
            try:
                content = self._files.read(self._path)
            except FileNotFoundError:
                content = b""
            self._state = _State(self._state.remembered)
            for line in content.splitlines():
                record = _record(line)
                if record is not None:
                    self._state.apply(record)
        self._replace()

    def _replace(self) -> None:
        line = _line(self._state.record())
        with explained("inbox cannot be written", self._path):
            replace_file(self._path, line, self._layout)
            fd = self._files.open(self._path, os.O_WRONLY | os.O_APPEND)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._start = fd, len(line), len(line)

    def _ready(self) -> None:
        """Open the journal again after a failed write: it may end with anything."""
        if self._fd < 0:
            self._open()

    def _append(self, record: dict[str, Any]) -> None:
        line = _line(record)
        try:
            with explained("inbox cannot be written", self._path):
                write_all(self._fd, line)
                os.fdatasync(self._fd)
        except StoreError:
            self._abandon()
            raise
        self._size += len(line)
        self._state.apply(record)
        if self._size - self._start > max(self._growth, self._start):
            # The record is durable: a journal that cannot be replaced now only grows.
            with suppress(StoreError):
                self._replace()

    def _abandon(self) -> None:
        """Remove what a failed write left; the journal is opened again before the next one."""
        with suppress(OSError):
            os.ftruncate(self._fd, self._size)
            os.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = -1


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None for one that a crash damaged."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) else None
