"""Reading a tar stream: every dialect that layers come in, strictly (umoci.md B3.9, B6).

v7, USTAR, star, GNU (long names, base-256 numbers, old sparse files) and PAX (also global headers and
sparse files 0.0, 0.1 and 1.0). What follows the trailer is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple
from zlib import adler32

from layerfarm.jobs.errors import MalformedLayer, TruncatedStream
from layerfarm.jobs.layer.pax import XATTR, decode_records, parse_number, parse_time
from layerfarm.jobs.layer.sparse import Holes, old_gnu_map, pax_map
from layerfarm.jobs.layer.tarformat import BLOCK, ZERO_BLOCK
from layerfarm.jobs.limits import Limits

_CHUNK: Final = 1 << 20
_GLOBAL: Final = b"g"
_LOCAL: Final = b"xX"  # X: the same by Solaris before it was standard
_LONG_NAME: Final = b"L"
_LONG_LINK: Final = b"K"
_SPARSE: Final = b"S"
_WITH_CONTENT: Final = frozenset(b"0\x007S")
_HEADER_ONLY: Final = frozenset(b"123456")
_NUMBERS_KEPT: Final = 65536
_GLOBAL_KEYS: Final = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime"))

Records = dict[bytes, bytes]


class Member(NamedTuple):
    """One entry of a layer as its headers describe it."""

    name: bytes
    type: int
    """The type flag; ``0`` for every kind of regular file."""
    mode: int
    uid: int
    gid: int
    size: int
    """Bytes of content, holes included."""
    mtime: int
    """Nanoseconds."""
    link: bytes
    device: tuple[int, int]
    atime: int | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    holes: Holes | None = None


class MemberReader:
    """The members of a tar stream. After each, its content may be taken once with :meth:`content`.

    Raises while iterating:
        TruncatedStream: the stream ends inside a header or an entry's content.
        MalformedLayer: a header breaks the format.
        LimitExceeded: a header is larger than ``limits`` allow.
    """

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self.ordinal = -1
        """The position of the current member in the stream, from 0."""
        self._read = stream.read
        self._limits = limits
        self._buffer = memoryview(b"")
        self._at = 0
        self._total = 0
        self._content = 0
        """Bytes of the current member's content that are still in the stream."""
        self._padding = 0
        self._numbers: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[Member]:
        global_records: Records = {}
        records: Records = {}
        sparse: list[tuple[bytes, bytes]] = []
        long_name: bytes | None = None
        long_link: bytes | None = None
        entries = 0
        while True:
            block = self._header()
            if block is None:
                if records or long_name is not None or long_link is not None:
                    raise TruncatedStream("tar stream ends after an extended header")
                return
            entries += 1
            if entries > self._limits.entries:
                raise self._limits.exceeded("entries", "layer has more than {} entries")
            flag = block[156:157]
            if flag in _LOCAL:
                for key, value in decode_records(self._extended(block)):
                    if key.startswith(b"GNU.sparse."):
                        sparse.append((key, value))
                    records[key] = value
                continue
            if flag == _GLOBAL:
                self._update(global_records, decode_records(self._extended(block)))
                continue
            if flag == _LONG_NAME:
                long_name = self._extended(block).partition(b"\0")[0]
                continue
            if flag == _LONG_LINK:
                long_link = self._extended(block).partition(b"\0")[0]
                continue
            member = self._member(
                block, {**global_records, **records} if global_records else records, sparse, long_name, long_link
            )
            self.ordinal += 1
            yield member
            self._skip()
            if records:
                records = {}
                sparse = []
            long_name = long_link = None

    def content(self) -> Iterator[memoryview]:
        """The current member's content, data only without its holes, in pieces valid until the next one."""
        while self._content:
            if self._at == len(self._buffer):
                self._fill()
            piece = self._buffer[self._at : self._at + self._content]
            self._at += len(piece)
            self._content -= len(piece)
            yield piece

    def whole(self, size: int) -> memoryview | None:
        """The current member's content at once, if all ``size`` bytes of it are at hand; else None."""
        at = self._at
        if size != self._content or at + size > len(self._buffer):
            return None
        self._at = at + size
        self._content = 0
        return self._buffer[at : at + size]

    def drain(self) -> None:
        """Read what is left of the stream, so that whoever hashes it sees all (the diff_id covers it)."""
        self._buffer, self._at = memoryview(b""), 0
        while piece := self._read(_CHUNK):
            self._count(len(piece))

    # --- blocks --------------------------------------------------------------------------------------

    def _header(self) -> bytes | None:
        """The next header block, checked, or None at the end of the archive."""
        block = self._block()
        if block is None:
            return None
        if block[0] == 0 and block == ZERO_BLOCK:
            following = self._block()
            if following is not None and following != ZERO_BLOCK:
                # Readers disagree on what comes then; Go's, and so containerd and Docker, refuse it.
                raise MalformedLayer("an entry follows a zero block in the tar stream")
            return None
        _check_sum(block)
        return block

    def _block(self) -> bytes | None:
        at = self._at
        if at + BLOCK <= len(self._buffer):
            self._at = at + BLOCK
            return bytes(self._buffer[at : at + BLOCK])
        block = self._take(BLOCK, short=True)
        if not block:
            return None
        if len(block) < BLOCK:
            raise TruncatedStream("tar stream ends inside a header")
        return block

    def _take(self, size: int, *, short: bool = False) -> bytes:
        parts: list[bytes] = []
        while size:
            if self._at == len(self._buffer) and not self._refill():
                if short:
                    break
                raise TruncatedStream("tar stream ends inside an entry")
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            parts.append(bytes(piece))
        return b"".join(parts)

    def _refill(self) -> bool:
        piece = self._read(_CHUNK)
        self._buffer, self._at = memoryview(piece), 0
        self._count(len(piece))
        return bool(piece)

    def _fill(self) -> None:
        if not self._refill():
            raise TruncatedStream("tar stream ends inside an entry's content")

    def _count(self, size: int) -> None:
        self._total += size
        if self._total > self._limits.stream_bytes:
            raise self._limits.exceeded("stream_bytes", "layer is larger than {} bytes")

    def _skip(self) -> None:
        """Go to the next header. The padding of the last member may be missing, as its readers allow."""
        left = self._content + self._padding
        at = self._at + left
        if at <= len(self._buffer):
            self._at = at
        else:
            for _ in self.content():
                pass
            self._take(self._padding, short=True)
        self._content = self._padding = 0

    def _extended(self, block: bytes) -> bytes:
        size = self._number(block[124:136])
        if size > self._limits.pax_bytes:
            raise self._limits.exceeded("pax_bytes", "extended tar header is larger than {} bytes")
        body = self._take(size)
        self._take(-size % BLOCK, short=True)
        return body

    def _update(self, known: Records, records: list[tuple[bytes, bytes]]) -> None:
        """Add global records; those that mean nothing to us are not kept, a hostile layer may hold millions."""
        known.update((key, value) for key, value in records if key in _GLOBAL_KEYS or key.startswith(XATTR))
        if sum(len(key) + len(value) for key, value in known.items()) > self._limits.xattr_bytes:
            raise self._limits.exceeded("xattr_bytes", "global PAX headers hold more than {} bytes")

    # --- fields --------------------------------------------------------------------------------------

    def _member(
        self,
        block: bytes,
        records: Records,
        sparse: list[tuple[bytes, bytes]],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Member:
        flag = block[156]
        name = _text(block[:100])
        link = _text(block[157:257]) if block[157] else b""
        magic = block[257:263]
        device = (0, 0)
        if magic == b"ustar\0" and block[345]:
            prefix = _text(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
            name = prefix + b"/" + name
        if flag in b"34":
            device = (self._number(block[329:337]), self._number(block[337:345]))
        number = self._number
        mode, uid, gid, size = (
            number(block[100:108]),
            number(block[108:116]),
            number(block[116:124]),
            number(block[124:136]),
        )
        mtime = self._signed(block[136:148]) * 10**9
        if long_name is not None:
            name = long_name
        if long_link is not None:
            link = long_link
        atime: int | None = None
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        holes: Holes | None = None
        if records:
            get = records.get
            # An empty value deletes the record: the header's own field counts (POSIX pax).
            name = get(b"path") or name
            link = get(b"linkpath") or link
            if value := get(b"size"):
                size = parse_number(b"size", value)
            if value := get(b"uid"):
                uid = parse_number(b"uid", value)
            if value := get(b"gid"):
                gid = parse_number(b"gid", value)
            if value := get(b"mtime"):
                mtime = parse_time(value)
            if value := get(b"atime"):
                atime = parse_time(value)
            xattrs = self._xattrs(records)
        if flag in _HEADER_ONLY:
            # Some writers give a link the size of its target: no content follows all the same, as Go,
            # GNU tar and libarchive read it.
            size = 0
        stored = size
        if flag == _SPARSE[0]:
            holes, stored = old_gnu_map(block, stored, self._take, number, self._limits), stored
            size = holes.size
        elif sparse and flag in _WITH_CONTENT:
            holes, stored = pax_map(sparse, stored, self._take, self._limits)
            size = holes.size
            name = records.get(b"GNU.sparse.name") or name
        if flag in _WITH_CONTENT:
            # The suffix convention of v7: no type for directories (GNU tar and libarchive do the same).
            flag = 0x35 if name.endswith(b"/") else 0x30
        self._content, self._padding = stored, -stored % BLOCK
        limit = self._limits.path_bytes
        if len(name) > limit or len(link) > limit:
            raise self._limits.exceeded("path_bytes", "path in the layer is longer than {} bytes", name[:100])
        if not name:
            raise MalformedLayer("tar entry has no name")
        return Member(name, flag, mode & 0o7777, uid, gid, size, mtime, link, device, atime, xattrs, holes)

    def _xattrs(self, records: Records) -> tuple[tuple[bytes, bytes], ...]:
        found = [(key[len(XATTR) :], value) for key, value in records.items() if value and key.startswith(XATTR)]
        if not found:
            return ()
        if sum(len(key) + len(value) for key, value in found) > self._limits.xattr_bytes:
            raise self._limits.exceeded("xattr_bytes", "xattrs of one entry hold more than {} bytes")
        if any(not key for key, _ in found):
            raise MalformedLayer("xattr has no name")
        return tuple(sorted(found))

    def _number(self, field: bytes) -> int:
        """A number that cannot be negative: octal text or, with the highest bit set, base-256."""
        known = self._numbers.get(field)
        if known is not None:
            return known
        value = self._signed(field)
        if value < 0:
            raise MalformedLayer("negative number in a tar header")
        if len(self._numbers) < _NUMBERS_KEPT:
            # Modes, owners and sizes repeat: looking them up saves 1 us an entry.
            self._numbers[field] = value
        return value

    @staticmethod
    def _signed(field: bytes) -> int:
        first = field[0]
        if first & 0x80:
            value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
            # Bit 6 of the first byte is the sign.
            return value - (1 << (8 * len(field) - 1)) if first & 0x40 else value
        digits = field.partition(b"\0")[0].strip(b" ")
        if not digits:
            return 0
        # isdigit: int() alone would also take "1_0" and "+7".
        if not digits.isdigit():
            raise MalformedLayer("tar header holds a number that is none", where=field)
        try:
            return int(digits, 8)
        except ValueError as error:
            raise MalformedLayer("tar header holds a number that is none", where=field) from error


def _text(field: bytes) -> bytes:
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def _check_sum(block: bytes) -> None:
    field = block[148:156]
    try:
        expected = int(field.partition(b"\0")[0].strip(b" ") or b"-1", 8)
    except ValueError:
        expected = -1
    # adler32's low half is 1 + the sum of the bytes while that is below 65521: exact for 256 of them,
    # and 20 times faster than sum() over 512.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    if total - sum(field) + 8 * 0x20 == expected:
        return
    # Very old writers summed signed bytes (POSIX ustar tells readers to take both).
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 0x20
    if signed != expected:
        raise MalformedLayer("tar header has a wrong checksum, the stream is damaged or no tar")
