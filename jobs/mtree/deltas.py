"""The deltas file: what a comparison found, on its way to the writer of the layer (DESIGN law 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from layerfarm.jobs.errors import MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.keywords import BILLION
from layerfarm.jobs.mtree.model import Delta, DeltaKind

_FLUSH_LINES = 1024
_KINDS = {kind.value.encode("ascii"): kind for kind in DeltaKind}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True)
class DeltaSummary:
    """What a deltas file holds."""

    count: int
    bytes_to_pack: int
    """Content of the regular files among the Extra and Modified."""
    newest_mtime_seconds: int | None
    """Over the Extra and Modified; None if there is none."""


def write_deltas(deltas: Iterable[Delta], out: BinaryIO) -> DeltaSummary:
    """Write kind and path of each delta, in the given order, a line each."""
    count = size = 0
    newest = None
    lines: list[bytes] = []
    for kind, path, _, new, _ in deltas:
        count += 1
        if new is not None:
            if new.type == "file":
                size += new.size
            if newest is None or new.mtime > newest:
                newest = new.mtime
        lines.append(b"%b %b\n" % (_NAMES[kind], vis.encode(path)))
        if len(lines) >= _FLUSH_LINES:
            out.write(b"".join(lines))
            lines.clear()
    out.write(b"".join(lines))
    return DeltaSummary(count, size, None if newest is None else newest // BILLION)


def read_deltas(stream: BinaryIO) -> Iterator[Delta]:
    """The deltas of a deltas file, with kind and path only.

    Raises:
        MtreeSyntaxError: a line is not one of a deltas file.
    """
    for number, line in enumerate(stream, 1):
        kind, _, path = line[:-1].partition(b" ")
        if kind not in _KINDS or not path or line[-1:] != b"\n":
            raise MtreeSyntaxError(f"line {number} of the deltas file", where=line[:200])
        yield Delta(_KINDS[kind], vis.decode(path))
