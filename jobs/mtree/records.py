"""The walk file: one line for each entry of a tree, with what lstat(2) says, before anything is read.

``ctime-ns mode size nlink uid gid mtime-ns ino dev rdev path``, numbers in decimal, the path encoded as
in a manifest. The fixed fields stand first so that a reader that needs few of them splits no further.

The ctime is 0 where it vouches for nothing (:mod:`layerfarm.jobs.mtree.clock`). So a record that is byte for byte
that of an earlier walk, and does not begin with ``0``, is of an entry that nobody has touched since; no
number needs to be parsed to know it.
"""

from __future__ import annotations

import os
import stat

from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.model import EntryType, mtree_key

UNTRUSTED = b"0 "
"""How the record of an entry begins whose ctime vouches for nothing."""

NLINK_DIGITS = 10
"""Width of the link count of an entry with several links, which is corrected in place at the end of a walk."""

TYPE_OF: dict[int, EntryType] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def format_record(found: os.stat_result, ctime: int, path: str) -> str:
    """The line of an entry with one link, or of a directory."""
    return (
        f"{ctime} {found.st_mode} {found.st_size} {found.st_nlink} {found.st_uid} {found.st_gid} {found.st_mtime_ns}"
        f" {found.st_ino} {found.st_dev} {found.st_rdev} {path}\n"
    )


def format_linked_record(found: os.stat_result, ctime: int, path: str) -> tuple[str, int]:
    """The line of an entry with several links, and at which character of it the link count stands."""
    head = f"{ctime} {found.st_mode} {found.st_size} "
    line = (
        f"{head}{found.st_nlink:0{NLINK_DIGITS}d} {found.st_uid} {found.st_gid} {found.st_mtime_ns}"
        f" {found.st_ino} {found.st_dev} {found.st_rdev} {path}\n"
    )
    return line, len(head)


def key_of_record(line: bytes) -> bytes:
    """The mtree key of a line.

    Raises:
        ValueError: it is not a line of a walk file.
    """
    fields = line.split()
    return mtree_key(vis.decode(fields[10]), int(fields[1]) >> 12 == 0o4)
