"""The order of a layer's entries: the sort keys (:func:`~layerfarm.jobs.layer.names.walk_key`) of deltas."""

from __future__ import annotations

import io
import re
from typing import BinaryIO, Final

from layerfarm.jobs.errors import LayerError, UnsafePath
from layerfarm.jobs.layer.names import walk_key
from layerfarm.jobs.mtree.deltas import read_deltas
from layerfarm.jobs.mtree.model import ROOT, Delta, DeltaKind

_AT_ONCE: Final = 1 << 20
_NOT_PLAIN: Final = re.compile(rb"[\\\0]|[ /]\.{0,2}[/\n]")
"""An escape, a NUL, or an empty component, ``.`` or ``..`` of a path."""
_ROOT: Final = (b"extra .\n", b"modified .\n")


def key_of(delta: Delta) -> bytes:
    """Return the sort key of a delta, from which its path can be read back.

    Raises:
        UnsafePath: it is not the path of an entry of a tree.
        LayerError: a layer cannot hold the delta.
    """
    path = delta.path
    parts = path.split(b"/")
    if path == ROOT:
        if delta.kind is DeltaKind.MISSING:
            raise LayerError("a layer cannot delete the root")
    elif not path or b"\0" in path or b"" in parts or b"." in parts or b".." in parts:
        raise UnsafePath("not a path below the root", where=path)
    elif delta.kind not in (DeltaKind.EXTRA, DeltaKind.MODIFIED, DeltaKind.MISSING):
        raise LayerError(f"delta of unknown kind {delta.kind!r}", where=path)
    return walk_key(path, whiteout=delta.kind is DeltaKind.MISSING)


def read_keys(stream: BinaryIO) -> set[bytes]:
    """Return the sort keys of the deltas in a file of :func:`~layerfarm.jobs.mtree.write_deltas`.

    Raises:
        MtreeSyntaxError: a line is not one of a deltas file.
        UnsafePath, LayerError: as :func:`key_of`.
    """
    keys: set[bytes] = set()
    while lines := stream.readlines(_AT_ONCE):
        if lines[0] in _ROOT:
            keys.add(walk_key(ROOT))
            del lines[0]
        # Before the first block of a layer nothing else runs, so the usual lines are not parsed one by one.
        text = (b"\n" + b"".join(lines)).replace(b"\nmodified ", b"\nextra ")
        if text.count(b"\nextra ") == len(lines) and text[-1:] == b"\n" and _NOT_PLAIN.search(text) is None:
            keys.update([b"\0" + path for path in text[:-1].replace(b"/", b"\0").split(b"\nextra ")[1:]])
        else:
            keys.update(map(key_of, read_deltas(io.BytesIO(text[1:]))))
    return keys
