"""Fragments: the hashed shards of one tree, and their merge.

A line is a full-path mtree line with all keywords in a fixed order. It needs no state, so fragments can be cut and
joined anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, get_args

from layerfarm.jobs.errors import IncompleteTree, MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.deltas import DeltaSummary
from layerfarm.jobs.mtree.model import BILLION, Entry, EntryType, Xattrs, mtree_key

_FLUSH_LINES: Final = 1024
_TYPES: dict[bytes, EntryType] = {f"type={kind}".encode(): kind for kind in get_args(EntryType)}


def merge_fragments(paths: Sequence[Path], expected_entries: int) -> Iterator[Entry]:
    """Return the entries of all fragments in mtree order; the fragments may come in any order.

    Raises:
        IncompleteTree: a shard is missing, or two shards hold the same path; raised at the end at the latest.
        MtreeSyntaxError: a fragment is damaged.
    """
    return parse_lines(merge_lines(paths, expected_entries))


def merge_lines(paths: Sequence[Path], expected_entries: int) -> Iterator[bytes]:
    """Yield the lines of all fragments in mtree order. Raises as :func:`merge_fragments`."""
    first = []
    for path in paths:
        with path.open("rb") as stream:
            line = stream.readline()
        if line:
            first.append((_key(parse_line(line)), path))
    first.sort(key=lambda pair: pair[0])
    count = 0
    last = b""
    for key, path in first:
        if last and key <= _key(before := parse_line(last)):
            raise IncompleteTree("two shards hold the same path", where=before.path)
        with path.open("rb") as stream:
            for last in stream:
                count += 1
                yield last
    if count != expected_entries:
        raise IncompleteTree(f"the shards hold {count} of {expected_entries} entries")


def parse_lines(lines: Iterable[bytes]) -> Iterator[Entry]:
    """Return the entries of lines of fragments.

    Raises:
        MtreeSyntaxError: a line is damaged.
    """
    return map(parse_line, lines)


def write_all_extra(lines: Iterable[bytes], out: BinaryIO) -> tuple[DeltaSummary, list[bytes]]:
    """Write an Extra delta for each line of fragments; return the counts and the paths of the sockets, left out.

    As :func:`~layerfarm.jobs.mtree.write_deltas` of these entries, in a sixth of the time: they are not parsed.

    Raises:
        MtreeSyntaxError: a line is damaged.
    """
    count = size = 0
    newest = None
    sockets: list[bytes] = []
    deltas: list[bytes] = []
    for line in lines:
        try:
            name, kind, _mode, _uid, _gid, length, _nlink, rest = line.split(b" ", 7)
            seconds = int(rest[5 : rest.index(b".")])
            if kind == b"type=file":
                size += int(length[5:])
            elif kind == b"type=socket":
                sockets.append(parse_line(line).path)
                continue
        except ValueError as error:
            raise MtreeSyntaxError("malformed line of a fragment", where=line[:200]) from error
        count += 1
        if newest is None or seconds > newest:
            newest = seconds
        deltas.append(b"extra %b\n" % (name if name == b"." else name[2:]))
        if len(deltas) >= _FLUSH_LINES:
            out.write(b"".join(deltas))
            deltas.clear()
    out.write(b"".join(deltas))
    return DeltaSummary(count, size, newest), sockets


def _key(entry: Entry) -> bytes:
    return mtree_key(entry.path, entry.type == "dir")


def parse_line(line: bytes) -> Entry:
    """Return the entry of one line of a fragment.

    Raises:
        MtreeSyntaxError: it is damaged.
    """
    # Half of a merge's time is spent here, hence the fixed order and tuple.__new__.
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
