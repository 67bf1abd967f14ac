"""Fragments: the hashed shards of one tree, and their merge.

A fragment's lines are full-path mtree lines with all keywords in a fixed order, so they need no state
and can be cut and joined anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from layerfarm.jobs.errors import IncompleteTree, MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.keywords import BILLION, parse_xattr
from layerfarm.jobs.mtree.model import Entry, Xattrs, mtree_key

_TYPES = frozenset(("file", "dir", "link", "char", "block", "fifo", "socket"))


def merge_fragments(paths: Sequence[Path], expected_entries: int) -> Iterator[Entry]:
    """The entries of all fragments in mtree order, in whatever order the fragments are given.

    Raises:
        IncompleteTree: a shard is missing, or two shards hold the same path; at the end at the latest.
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
    """The entries of one fragment.

    Raises:
        MtreeSyntaxError: it is damaged.
    """
    return map(_parse, stream)


def _key(entry: Entry) -> bytes:
    return mtree_key(entry.path, entry.type == "dir")


def _parse(line: bytes) -> Entry:
    """One line; half of the time of a merge goes here, hence the fixed order and tuple.__new__."""
    try:
        name, kind, mode, uid, gid, size, nlink, time, *rest = line.split()
        if b"\\" in name:
            name = vis.decode(name)
        seconds, nanoseconds = time[5:].split(b".")
        type_ = kind[5:].decode("ascii")
        if type_ not in _TYPES or line[-1:] != b"\n":
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
                xattrs = tuple([parse_xattr(_after_prefix(token)) for token in rest])
        return tuple.__new__(
            Entry,
            (
                name if name == b"." else name[2:],
                type_,
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
    except (ValueError, UnicodeDecodeError) as error:
        raise MtreeSyntaxError("not a line of a fragment", where=line[:200]) from error


def _after_prefix(token: bytes) -> bytes:
    if not token.startswith(b"xattr."):
        raise ValueError(token)
    return token[6:]
