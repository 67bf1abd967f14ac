"""A tree into its files, in one pass: as it lies on disk, as a layer can hold it, or both at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO, Final, NamedTuple

from layerfarm.jobs.mtree.model import Entry
from layerfarm.jobs.mtree.write import ManifestWriter, write_extra

Adapt = Callable[[Entry], Entry | None]
"""An entry as it is to be written, with its path, type and owner; None: not at all."""

_BATCH: Final = 4096


def as_it_is(entry: Entry) -> Entry:
    """The form of a tree as it lies on disk."""
    return entry


class Output(NamedTuple):
    """Where one form of a tree goes."""

    manifest: BinaryIO
    extra: BinaryIO | None = None
    """Takes what the manifest has no place for; None: nobody wants to know."""
    adapt: Adapt = as_it_is


class TreeWriter:
    """Writes one or two forms of a tree. The lines of entries that are the same in both are formatted once.

    What the first output leaves out the second does not have either.
    """

    def __init__(self, first: Output, second: Output | None = None) -> None:
        outputs = (first,) if second is None else (first, second)
        self._adapt = first.adapt
        self._adapt_twin = None if second is None else second.adapt
        self._out = ManifestWriter(*(output.manifest for output in outputs))
        self._extras: list[tuple[BinaryIO | None, list[Entry]]] = [(output.extra, []) for output in outputs]
        self._count = 0

    def entry(self, entry: Entry) -> None:
        """Write the next entry, in mtree order.

        Raises:
            MtreeError: it does not follow its directory.
        """
        adapted = self._adapt(entry)
        if adapted is None:
            return
        self._count += 1
        twin = None if self._adapt_twin is None else self._adapt_twin(entry)
        self._out.entry(adapted, twin)
        if entry.device is not None or entry.xattrs:
            for each, (extra, batch) in zip((adapted, twin), self._extras, strict=False):
                if each is not None and extra is not None:
                    batch.append(each)
                    # The lines of the extra file are stateless, and few.
                    if len(batch) == _BATCH:
                        write_extra(batch, extra)
                        batch.clear()

    def line(self, line: bytes, uid: int, gid: int) -> bool:
        """:meth:`layerfarm.jobs.mtree.write.ManifestWriter.same`, for an entry that no output adapts."""
        written = self._out.same(line, uid, gid)
        self._count += written
        return written

    def close(self) -> int:
        """Write what ends the files, which stay open; the entries of the first output."""
        self._out.finish()
        for extra, batch in self._extras:
            if extra is not None:
                write_extra(batch, extra)
        return self._count


def write_tree(entries: Iterable[Entry], first: Output, second: Output | None = None) -> int:
    """Write a whole tree, which comes in mtree order; returns the entries of the first output.

    Raises:
        MtreeError: an entry does not follow its directory.
    """
    writer = TreeWriter(first, second)
    for entry in entries:
        writer.entry(entry)
    return writer.close()
