"""Fragments: the hashed shards of one tree, and their merge.

A line is a full-path mtree line with all keywords in a fixed order. It needs no state, so fragments can be cut and
joined anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, get_args

from layerfarm.jobs.errors import IncompleteTree, MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.model import BILLION, Entry, EntryType, Xattrs, mtree_key

_TYPES: dict[bytes, EntryType] = {f"type={kind}".encode(): kind for kind in get_args(EntryType)}


def merge_fragments(paths: Sequence[Path], expected_entries: int) -> Iterator[Entry]:
    """Yield the entries of all fragments in mtree order; the fragments may come in any order.

    Raises:
        IncompleteTree: a shard is missing, or two shards hold the same path; raised at the end at the latest.
        MtreeSyntaxError: a fragment is damaged.
    """
    first = []
    for path in paths:
        with path.open("rb") as stream:
            line = stream.readline()
        if line:
            first.append((_key(_parse(line)), path))
    first.sort(key=lambda pair: pair[0])
    count = 0
    last = None
    for key, path in first:
        if last is not None and key <= _key(last):
            raise IncompleteTree("two shards hold the same path", where=last.path)
        with path.open("rb") as stream:
            for last in read_fragment(stream):
                count += 1
                yield last
    if count != expected_entries:
        raise IncompleteTree(f"the shards hold {count} of {expected_entries} entries")


def read_fragment(stream: BinaryIO) -> Iterator[Entry]:
    """Return the entries of one fragment.

    Raises:
        MtreeSyntaxError: it is damaged.
    """
    return map(_parse, stream)


def _key(entry: Entry) -> bytes:
    return mtree_key(entry.path, entry.type == "dir")


def _parse(line: bytes) -> Entry:
    """Parse one line. Half of a merge's time is spent here, hence the fixed order and tuple.__new__."""
    try:
        name, kind, mode, uid, gid, size, nlink, time, *rest = line.split()
        if b"\\" in name:
            name = vis.decode(name)
        seconds, nanoseconds = time[5:].split(b".")
        if line[-1:] != b"\n":
            raise ValueError
        link = sha256 = device = None
        xattrs: Xattrs = ()
        if rest:
            token = rest[0]
            if token.startswith(b"sha256digest="):
                sha256 = token[13:].decode("ascii")
                del rest[0]
            elif token.startswith(b"link="):
                link = vis.decode(token[5:])
                del rest[0]
            elif token.startswith(b"device="):
                major, minor = token[7:].split(b":")
                device = (int(major), int(minor))
                del rest[0]
            if rest:
                xattrs = tuple([_xattr(token) for token in rest])
        return tuple.__new__(
            Entry,
            (
                name if name == b"." else name[2:],
                _TYPES[kind],
                int(mode[5:], 8),
                int(uid[4:]),
                int(gid[4:]),
                int(size[5:]),
                int(nlink[6:]),
                int(seconds) * BILLION + int(nanoseconds),
                link,
                sha256,
                xattrs,
                device,
            ),
        )
    except (ValueError, KeyError) as error:  # UnicodeDecodeError is a ValueError
        raise MtreeSyntaxError("malformed line of a fragment", where=line[:200]) from error


def _xattr(token: bytes) -> tuple[bytes, bytes]:
    if not token.startswith(b"xattr."):
        raise ValueError(token)
    return vis.parse_xattr(token[6:])
