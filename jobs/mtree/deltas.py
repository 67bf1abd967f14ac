"""Filters of deltas, and the deltas file that carries them to the writer of a layer (law 3, docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from layerfarm.jobs.errors import MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.model import BILLION, ROOT, Delta, DeltaKind

_FLUSH_LINES = 1024
_KINDS = {kind.value.encode("ascii"): kind for kind in DeltaKind}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class DeltaSummary(NamedTuple):
    """Counts over a deltas file."""

    paths: int = 0
    bytes: int = 0
    """Content of the regular files among the Extra and Modified."""
    newest_mtime: int | None = None
    """Seconds, over the Extra and Modified; None if there is none."""

    def joined(self, other: DeltaSummary) -> DeltaSummary:
        """Return the counts over two parts of a file."""
        times = [time for time in (self.newest_mtime, other.newest_mtime) if time is not None]
        return DeltaSummary(self.paths + other.paths, self.bytes + other.bytes, max(times, default=None))


def simplify(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Drop a Missing whose ancestor is Missing: one whiteout removes a whole directory (umoci.md B1.11)."""
    below = None
    for delta in deltas:
        if delta.kind is DeltaKind.MISSING:
            if below is not None and delta.path.startswith(below):
                continue
            below = delta.path + b"/"
        yield delta


def mask(deltas: Iterable[Delta], paths: Sequence[bytes]) -> Iterator[Delta]:
    """Drop the deltas of ``paths`` and of everything below them; compared as text, without resolving links.

    The paths may be absolute, as an image's volumes are. The root's path masks everything.
    """
    masked = {_normal(path) for path in paths}
    if not masked:
        yield from deltas
        return
    if ROOT in masked:
        return
    for delta in deltas:
        path = delta.path
        while path and path not in masked:
            path = path.rpartition(b"/")[0]
        if not path:
            yield delta


def _normal(path: bytes) -> bytes:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts) or ROOT


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
    """Yield the deltas of a deltas file, with kind and path only.

    Raises:
        MtreeSyntaxError: a line is not one of a deltas file.
    """
    for number, line in enumerate(stream, 1):
        kind, _, path = line[:-1].partition(b" ")
        if kind not in _KINDS or not path or line[-1:] != b"\n":
            raise MtreeSyntaxError(f"line {number} of the deltas file is malformed", where=line[:200])
        yield Delta(_KINDS[kind], vis.decode(path))
