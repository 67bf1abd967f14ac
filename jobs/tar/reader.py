"""Read tar streams in every dialect that layers use, strictly (umoci.md B3.9, B6).

v7, USTAR, star, GNU (long names, base-256 numbers, old sparse files) and PAX (also sparse files 0.0, 0.1
and 1.0). Reads what Go's archive/tar reads and refuses what it refuses, because builders and runtimes use it;
tests/fuzz/archive_tar.py names the exceptions. Global PAX headers are ignored, as by containerd and Docker; so is the
data after the trailer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple, Protocol

from layerfarm.jobs.errors import MalformedLayer, TruncatedStream
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.header import check_sum, has_devices, is_gnu, number, prefix_and_atime, text
from layerfarm.jobs.tar.pax import XATTR, Records, parse_signed, parse_time, read_records
from layerfarm.jobs.tar.sparse import Holes, is_sparse, old_gnu_map, pax_map
from layerfarm.jobs.tar.writer import BLOCK, ZERO_BLOCK

_CHUNK: Final = 1 << 20
_GLOBAL: Final = b"g"
_LOCAL: Final = b"x"
_LONG_NAME: Final = b"L"
_LONG_LINK: Final = b"K"
_EXTENDED: Final = _LOCAL + _LONG_NAME + _LONG_LINK
_SPARSE: Final = b"S"
_WITH_CONTENT: Final = frozenset(b"07S")
_HEADER_ONLY: Final = frozenset(b"123456")
_DEVICES: Final = frozenset(b"34")
_NO_DEVICES: Final = frozenset((bytes(16), b"0000000\x000000000\0"))
_NUMBERS_KEPT: Final = 65536
_HEADERS_KEPT: Final = 256
_PLAIN_USTAR: Final = b"ustar\0"
_NS: Final = 10**9
_ZEROS: Final = bytes(1 << 20)


class Readable(Protocol):
    """A binary stream to read from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none only at the end."""


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
    """The members of a tar stream. The content of each may be read once, before the next, with :meth:`content`.

    Members that the stream names in an attribute ``hidden`` are left out and not counted: they belong to the format of
    the layer, as in eStargz. So no reader of a layer can take them for files.

    Raises while iterating:
        TruncatedStream: the stream ends inside a header or an entry's content.
        MalformedLayer: a header breaks the format.
        LimitExceeded: a header is larger than ``limits`` allow.
    """

    def __init__(self, stream: Readable, limits: Limits, *, hide: bool = True) -> None:
        """``hide``: False to read all members."""
        self.ordinal = -1
        """The position of the current member in the stream, from 0."""
        self.block = b""
        """The current member's header block."""
        self.records: Records = {}
        """The PAX records of the current member."""
        self.has_global = False
        """A global PAX header was read, which applies to nothing (Go treats it as a member)."""
        self._read = stream.read
        self._hidden: frozenset[bytes] = getattr(stream, "hidden", frozenset()) if hide else frozenset()
        self._limits = limits
        self._buffer = memoryview(b"")
        self._at = 0
        self._total = 0
        self._content = 0
        """Bytes of the current member's content that are still in the stream."""
        self._padding = 0
        self._numbers: dict[bytes, int] = {}
        self._checked: set[bytes] = set()

    def __iter__(self) -> Iterator[Member]:
        records: Records = {}
        long_name = long_link = b""
        held = 0
        """Return the bytes of the extended headers since the last member; all belong to the next one."""
        entries = 0
        while True:
            block = self._header()
            if block is None:
                if held:
                    raise TruncatedStream("tar stream ends after an extended header")
                return
            entries += 1
            if entries > self._limits.entries:
                raise self._limits.exceeded("entries", "layer has more than {} entries")
            flag = block[156:157]
            if flag == _GLOBAL:
                # Go treats it as a member: extended headers before it belong to it, and are dropped.
                read_records(self._extended(block, 0))
                self.has_global = True
                records, long_name, long_link, held = {}, b"", b"", 0
                continue
            if flag in _EXTENDED:
                body = self._extended(block, held)
                # A member without content is a header all the same.
                held += len(body) or 1
                if flag == _LOCAL:
                    # The last one counts, as in Go, and replaces those before it.
                    records = read_records(body)
                elif flag == _LONG_NAME:
                    long_name = text(body)
                else:
                    long_link = text(body)
                continue
            member = self._member(block, records, long_name, long_link)
            if not (self._hidden and is_own(member.name, self._hidden)):
                self.ordinal += 1
                self.block, self.records = block, records
                yield member
            self._skip()
            if held:
                records, long_name, long_link, held = {}, b"", b"", 0

    @property
    def position(self) -> int:
        """Bytes of the stream before what is read next: at a new member, before its content."""
        return self._total - len(self._buffer) + self._at

    @property
    def left(self) -> int:
        """Bytes of the current member's content that are still in the stream: before reading it, all without holes."""
        return self._content

    def content(self) -> Iterator[memoryview]:
        """Yield the current member's content, data only without its holes, in pieces valid until the next one."""
        while self._content:
            if self._at == len(self._buffer):
                self._fill()
            piece = self._buffer[self._at : self._at + self._content]
            self._at += len(piece)
            self._content -= len(piece)
            yield piece

    def whole(self, size: int) -> memoryview | None:
        """Return the current member's content at once, if all ``size`` bytes of it are in the buffer; else None."""
        at = self._at
        if size != self._content or at + size > len(self._buffer):
            return None
        self._at = at + size
        self._content = 0
        return self._buffer[at : at + size]

    def expanded(self, member: Member) -> Iterator[bytes | memoryview]:
        """Yield the current member's content with its holes as zero ``bytes``; pieces are valid until the next one."""
        content = self.content()
        if member.holes is None:
            yield from content
            return
        held = memoryview(b"")
        end = 0
        for offset, length in member.holes.parts:
            yield from _zeros(offset - end)
            end = offset + length
            while length:
                held = held or next(content)
                piece, held = held[:length], held[length:]
                length -= len(piece)
                yield piece
        yield from _zeros(member.holes.size - end)

    def to_the_end(self) -> Iterator[Member]:
        """Yield all members, then read the rest of the stream, which the diff_id covers too."""
        yield from self
        self._buffer, self._at = memoryview(b""), 0
        while piece := self._read(_CHUNK):
            self._count(len(piece))

    # --- blocks --------------------------------------------------------------------------------------

    def _header(self) -> bytes | None:
        """Return the next header block, checked, or None at the end of the archive."""
        block = self._block()
        if block is None:
            return None
        if block[0] == 0 and block == ZERO_BLOCK:
            following = self._block()
            if following is not None and following != ZERO_BLOCK:
                # Readers disagree on entries after a zero block; Go's, and so containerd and Docker, refuse them.
                raise MalformedLayer("an entry follows a zero block in the tar stream")
            return None
        check_sum(block)
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
        """Go to the next header. The padding of the last member may be missing: other readers allow it."""
        left = self._content + self._padding
        at = self._at + left
        if at <= len(self._buffer):
            self._at = at
        else:
            for _ in self.content():
                pass
            self._take(self._padding, short=True)
        self._content = self._padding = 0

    def _extended(self, block: bytes, held: int) -> bytes:
        """Return the body of an extended header; ``held`` bytes of others belong to the same member."""
        self._check_numbers(block)
        size = self._number(block[124:136])
        if held + size > self._limits.pax_bytes:
            raise self._limits.exceeded("pax_bytes", "extended tar headers of one entry hold more than {} bytes")
        body = self._take(size)
        self._take(-size % BLOCK, short=True)
        return body

    # --- fields --------------------------------------------------------------------------------------

    def _check_numbers(self, block: bytes) -> None:
        """Raise for an extended header with a field that is not a number, even an unused one, as Go does."""
        self._signed(block[136:148])
        # The other fields are the same in most headers: looking them up saves 3 us.
        rest = block[100:124] + block[257:]
        if rest in self._checked:
            return
        for begin in (100, 108, 116):
            self._signed(block[begin : begin + 8])
        if has_devices(block):
            self._signed(block[329:337])
            self._signed(block[337:345])
        prefix_and_atime(block)
        if len(self._checked) < _HEADERS_KEPT:
            self._checked.add(rest)

    def _member(self, block: bytes, records: Records, long_name: bytes, long_link: bytes) -> Member:
        flag = block[156]
        name = text(block[:100])
        link = text(block[157:257]) if block[157] else b""
        device = (0, 0)
        atime: int | None = None
        # Nearly all members of real layers are USTAR without a prefix.
        if block[345] or block[508] or block[257:263] != _PLAIN_USTAR:
            prefix, seconds = prefix_and_atime(block)
            if prefix:
                name = prefix + b"/" + name
            if seconds is not None:
                atime = seconds * _NS
        number_of, signed = self._number, self._signed
        if block[329:345] not in _NO_DEVICES and has_devices(block):
            read = number_of if flag in _DEVICES else signed
            major, minor = read(block[329:337]), read(block[337:345])
            device = (major, minor) if flag in _DEVICES else device
        # A size is a number in any case, and not negative where the header's type has content.
        size = (signed if flag in _HEADER_ONLY else number_of)(block[124:136])
        mode, uid, gid = signed(block[100:108]), signed(block[108:116]), signed(block[116:124])
        mtime = number(block[136:148]) * _NS
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if records:
            get = records.get
            # An empty value deletes the record: the header's own field counts (POSIX pax).
            name = get(b"path") or name
            link = get(b"linkpath") or link
            if value := get(b"uid"):
                uid = parse_signed(b"uid", value)
            if value := get(b"gid"):
                gid = parse_signed(b"gid", value)
            if value := get(b"mtime"):
                mtime = parse_time(value)
            if value := get(b"atime"):
                atime = parse_time(value)
            if value := get(b"ctime"):
                parse_time(value)
            if value := get(b"size"):
                size = parse_signed(b"size", value)
            xattrs = self._xattrs(records)
        if mode < 0 or uid < 0 or gid < 0:
            # Go leaves it to its caller; chown(2) takes -1 for "leave the owner as it is".
            raise MalformedLayer("negative number in a tar header")
        # GNU's long names override PAX records, as in Go.
        name = long_name or name
        link = long_link or link
        if flag == 0:
            # The convention of v7, which has no type for directories. Type 0 is a file whatever its name.
            flag = 0x35 if name.endswith(b"/") else 0x30
        if flag in _HEADER_ONLY:
            # Some writers give a link the size of its target: no content follows all the same, as Go, GNU tar and
            # libarchive read it.
            size = 0
        elif size < 0:
            raise MalformedLayer("PAX record size is a negative number", where=name[:100])
        holes: Holes | None = None
        stored = size
        if flag == _SPARSE[0]:
            if not is_gnu(block):
                raise MalformedLayer("sparse file is not in one of GNU tar's formats", where=name[:100])
            holes = old_gnu_map(block, stored, self._take, number_of, self._limits)
        elif records and is_sparse(records):
            if flag in _HEADER_ONLY:
                raise MalformedLayer("sparse map on an entry that is not a file", where=name[:100])
            holes, stored = pax_map(records, stored, self._take, self._limits)
            name = records.get(b"GNU.sparse.name") or name
        if holes is not None:
            size = holes.size
        self._content, self._padding = stored, -stored % BLOCK
        limit = self._limits.path_bytes
        if len(name) > limit or len(link) > limit:
            raise self._limits.exceeded("path_bytes", "path in the layer is longer than {} bytes", name[:100])
        if not name:
            raise MalformedLayer("tar entry has no name")
        if flag in _WITH_CONTENT:
            flag = 0x30
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
        """Return a number that must not be negative."""
        value = self._signed(field)
        if value < 0:
            raise MalformedLayer("negative number in a tar header")
        return value

    def _signed(self, field: bytes) -> int:
        """Return a number. Modes, owners and sizes repeat: looking them up saves 1 us an entry."""
        value = self._numbers.get(field)
        if value is None:
            value = number(field)
            if len(self._numbers) < _NUMBERS_KEPT:
                self._numbers[field] = value
        return value


def is_own(name: bytes, names: Collection[bytes]) -> bool:
    """Return True if the plain form of a member's name is one of ``names``."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b".")) in names


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield _ZEROS[:size]
        size -= len(_ZEROS)
