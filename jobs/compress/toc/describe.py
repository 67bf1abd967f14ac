"""Members of a tar as a table of contents describes them.

containers/storage compares each entry with the header that Go's archive/tar reads, and fails the pull where they
differ. So a member must be described exactly, or the layer gets no table of contents.
"""

from __future__ import annotations

import time
from base64 import b64encode
from functools import lru_cache
from typing import Final

from layerfarm.jobs.compress.toc.entries import DIRECTORY, HARDLINK, REGULAR, TocEntry
from layerfarm.jobs.errors import display
from layerfarm.jobs.tar.header import has_devices, is_gnu, number
from layerfarm.jobs.tar.pax import XATTR, parse_time
from layerfarm.jobs.tar.reader import Member, MemberReader

_TYPES: Final = {
    0x30: REGULAR,
    0x31: HARDLINK,
    0x32: "symlink",
    0x33: "char",
    0x34: "block",
    0x35: DIRECTORY,
    0x36: "fifo",
}
_DEVICES: Final = frozenset(b"34")
_RAW_TYPES: Final = frozenset(b"\x000123456")
_STAR_TRAILER: Final = b"tar\0"
_NS: Final = 10**9
_YEARS: Final = range(-62_167_219_200, 253_402_300_800)
"""Seconds of the years 0 to 9999, which RFC 3339 can express."""
_NO_TIME: Final = -62_135_596_800 * _NS
"""The first moment of the year 1, Go's zero time."""


class Undescribable(Exception):
    """A table of contents cannot describe this layer. The message says which entry, and why."""


def described(member: Member, reader: MemberReader) -> TocEntry:
    """Return the entry of the current member of ``reader``, without digest and offsets.

    Raises:
        Undescribable: it has a field that would be lost, or be read differently.
    """
    block, records = reader.block, reader.records
    reason = _difference(member, reader)
    if reason:
        raise Undescribable(f"{reason}: {display(member.name[:200])}")
    try:
        return TocEntry(
            type=_TYPES[member.type],
            name=member.name.decode(),
            link=member.link.decode(),
            mode=number(block[100:108]),
            size=member.size,
            uid=member.uid,
            gid=member.gid,
            mtime=_time(member.mtime),
            atime="" if member.atime is None else _time(member.atime),
            ctime=_time(parse_time(records[b"ctime"])) if records.get(b"ctime") else "",
            major=member.device[0],
            minor=member.device[1],
            xattrs={
                key[len(XATTR) :].decode(): b64encode(value).decode()
                for key, value in records.items()
                if key.startswith(XATTR)
            },
        )
    except UnicodeDecodeError:
        raise Undescribable(f"name is not UTF-8: {display(member.name[:200])}") from None


def plain_name(name: str) -> str:
    """Return the name by which entries of the same file are recognized."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _difference(member: Member, reader: MemberReader) -> str:
    """Return the reason why the entry would not equal the header that Go reads; empty if there is none."""
    block = reader.block
    if block[156] not in _RAW_TYPES or member.type not in _TYPES:
        return "entry is of a type that a table of contents does not know"
    if member.holes is not None:
        return "sparse file"
    if not member.size and (number(block[124:136]) or reader.records.get(b"size", b"").strip(b"0")):
        return "entry without content has a size"
    if (is_gnu(block) and block[345:369].strip(b"\0")) or block[508:512] == _STAR_TRAILER:
        return "header has times of another format than PAX"
    if member.type not in _DEVICES and has_devices(block) and (number(block[329:337]) or number(block[337:345])):
        return "device number of an entry that is not a device"
    if ".." in member.name.decode("latin-1").split("/"):
        return "name leads out of its directory"
    return ""


def _time(nanoseconds: int) -> str:
    """Format as RFC 3339, in UTC; empty for no time."""
    if nanoseconds == _NO_TIME:
        return ""
    seconds, fraction = divmod(nanoseconds, _NS)
    if seconds not in _YEARS:
        raise Undescribable(f"time that RFC 3339 cannot express: {seconds}")
    return f"{_second(seconds)}{f'.{fraction:09d}'.rstrip('0') if fraction else ''}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}"
