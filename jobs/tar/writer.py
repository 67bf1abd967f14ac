"""Tar headers: one 512-byte block per entry, with a PAX header before it only where needed (B1.5)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple
from zlib import adler32

from layerfarm.jobs.tar.pax import XATTR, encode_records, encode_time

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)
TRAILER: Final = bytes(2 * BLOCK)
"""Two zero blocks end an archive; a layer without them makes GNU tar leave with exit code 2 (B1.16)."""

REGULAR: Final = b"0"
HARDLINK: Final = b"1"
SYMLINK: Final = b"2"
CHAR: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"

_MOST_ID: Final = 0o7777777
_MOST_SIZE: Final = 0o77777777777
_MOST_TIME: Final = 0o77777777777


class Header(NamedTuple):
    """One entry of a layer to be written."""

    name: bytes
    type: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    """Whole seconds."""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    nanoseconds: int = 0
    """Nanoseconds of the mtime beyond whole seconds; only layers merged from layers have any (B1.3)."""


def hardlink(first: Header, name: bytes) -> Header:
    """Return the entry ``name`` for another name of the inode whose entry is ``first``.

    It repeats the owner, mode, times and xattrs, as umoci does: containerd and Docker apply those of a link's entry
    to the inode, which would otherwise lose its owner, setuid bit and capabilities.
    """
    return first._replace(name=name, type=HARDLINK, size=0, link=first.name, device=(0, 0))


def encode_header(header: Header) -> bytes:
    """Return the header blocks of an entry: a PAX header if a field needs one, and the USTAR header.

    uname and gname stay empty and there is no atime or ctime (B1.3): nothing of this host is recorded.
    """
    name, type_, mode, uid, gid, size, mtime, link, device, xattrs, nanoseconds = header
    records: list[tuple[bytes, bytes]] = []
    prefix = b""
    if len(name) > 100 or not name.isascii():
        split = _split(name)
        if split is None:
            records.append((b"path", name))
            name = _fallback(name, type_ == DIRECTORY)
        else:
            prefix, name = split
    if link and (len(link) > 100 or not link.isascii()):
        records.append((b"linkpath", link))
        link = _fallback(link, False)
    if uid > _MOST_ID:
        records.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > _MOST_ID:
        records.append((b"gid", b"%d" % gid))
        gid = 0
    if size > _MOST_SIZE:
        records.append((b"size", b"%d" % size))
        size = 0
    if nanoseconds or not 0 <= mtime <= _MOST_TIME:
        records.append((b"mtime", encode_time(mtime, nanoseconds)))
        mtime = mtime if 0 <= mtime <= _MOST_TIME else 0
    for key, value in xattrs:
        records.append((XATTR + key, value))
    block = _ustar(name, type_, _attributes(mode, uid, gid), size, mtime, link, prefix, device)
    if not records:
        return block
    records.sort()
    if not all(_is_utf8(value) for key, value in records if key in (b"path", b"linkpath")):
        # Without it bsdtar reports invalid UTF-8 and fails (pax "hdrcharset").
        records.insert(0, (b"hdrcharset", b"BINARY"))
    body = encode_records(records)
    pax = _ustar(b"PaxHeaders.0/entry", b"x", _attributes(0o644, 0, 0), len(body), 0, b"", b"", (0, 0))
    return pax + body + bytes(-len(body) % BLOCK) + block


def padding(size: int) -> bytes:
    """Return the zeros between ``size`` bytes of content and the next block."""
    return bytes(-size % BLOCK)


@lru_cache(maxsize=4096)
def _attributes(mode: int, uid: int, gid: int) -> bytes:
    # Most entries of a tree share a handful of these: formatting them once saves 0.5 us an entry.
    return b"%07o\0%07o\0%07o\0" % (mode, uid, gid)


def _ustar(
    name: bytes,
    type_: bytes,
    attributes: bytes,
    size: int,
    mtime: int,
    link: bytes,
    prefix: bytes,
    device: tuple[int, int],
) -> bytes:
    head = b"%b%b%011o\0%011o\0" % (name.ljust(100, b"\0"), attributes, size, mtime)
    devices = b"%07o\0%07o\0" % device if device != (0, 0) else b"0000000\x000000000\0"
    tail = b"%b%bustar\x0000%b%b%b" % (type_, link.ljust(100, b"\0"), bytes(64), devices, prefix.ljust(167, b"\0"))
    # adler32's low half is 1 + the sum of the bytes while that is < 65521: exact for parts of 256 bytes,
    # and 20 times faster than sum() over 512.
    tail_sum = (adler32(tail[:256]) & 0xFFFF) + (adler32(tail[256:]) & 0xFFFF)
    total = (adler32(head) & 0xFFFF) + tail_sum - 3 + 8 * 0x20
    return b"%b%06o\0 %b" % (head, total, tail)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """``name`` as USTAR prefix (155 bytes) and name (100 bytes), or None if it does not fit."""
    if len(name) > 256 or not name.isascii():
        return None
    at = name.rfind(b"/", 0, 156)
    # The slash between the two is not stored; a directory's last slash must stay in the name.
    if at <= 0 or at == len(name) - 1 or len(name) - at - 1 > 100:
        return None
    return name[:at], name[at + 1 :]


def _fallback(name: bytes, is_directory: bool) -> bytes:
    """Return the name for readers without PAX: its end, with question marks for bytes that are not ASCII."""
    plain = bytes(byte if byte < 0x80 else 0x3F for byte in name[-99:])
    return plain.rstrip(b"/")[-99:] + b"/" if is_directory else plain


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
