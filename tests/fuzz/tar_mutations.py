"""Mutations of a tar stream that keep it a tar: fields of headers, with the checksum made right again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.fuzz import bytes_mutations

BLOCK = 512
Member = tuple[bytes, bytes]
"""A header and its content, padded."""

_NUMBERS = {"mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12)}
_DEVICES = {"major": (329, 8), "minor": (337, 8)}
_SPARSE = {"offset": (386, 12), "numbytes": (398, 12), "more": (482, 1), "realsize": (483, 12)}
_ALL_NUMBERS = tuple((_NUMBERS | _DEVICES | _SPARSE).values())
_TYPES = tuple(bytes((c,)) for c in b"\x000123456577gxXLKSVDMNA")

NAMES = (
    b"a", b"d", b"d/f", b"d/s/x", b"h", b"l", b"l/x", b"l/d/f", b"up", b"up/canary/file", b"abs", b"abs/file",
    b"loop", b"loop/x", b"f", b"f/below", b"fifo", b"new", b"new/deep/er", b"d/", b"f/", b"l/", b".", b"./", b"/",
    b"/.", b"..", b"../", b"../canary/file", b"../../canary", b"/canary/file", b"//canary", b"d/../../canary/file",
    b"d/..", b"d/.", b"./d/./f", b"d//f", b"/etc/passwd", b"a\0b", b"\0", b"n" * 255, b"n" * 256, b"d/" + b"n" * 255,
    b"\xff\xfe", b"n\nl", b"back\\slash", b"sp ace", b"d/" * 40 + b"x", b".wh.", b".wh..", b".wh...", b".wh..wh..opq",
    b"d/.wh..wh..opq", b"f/.wh..wh..opq", b"l/.wh..wh..opq", b"abs/.wh..wh..opq", b"up/.wh.canary", b"abs/.wh.file",
    b"d/.wh.f", b"d/.wh.s", b".wh.d", b".wh.f", b".wh.l", b".wh.up", b"d/.wh.", b"d/.wh..", b".wh./x", b".wh.x/y",
    b".wh..wh.plnk/1", b".wh..wh.aufs", b"./.wh.d", b".wh.d/", b"d/../.wh.d", b"/.wh.canary", b"../.wh.canary",
    b".wh..wh..opq/x",
)  # fmt: skip
_LONG_NAMES = (
    b"d/" * 2047 + b"x", b"d/" * 2100 + b"x", b"p" * 200 + b"/" + b"q" * 5000, b"x" * 8193, b"../" * 3000 + b"x",
)  # fmt: skip
LINKS = (
    b"f", b"d", b"d/f", b"l", b"h", b".", b"..", b"/", b"", b"loop", b"../canary/file",
    b"/canary/file", b"/canary", b"../../../../canary", b"up/canary/file", b"abs/file", b"new", b"fifo", b"nowhere",
    b"d/../f", b"/etc/passwd", b"a\0b", b"t" * 255, b"t" * 4095, b"t/" * 2048, b"l/x", b"./f", b"../root/f",
    b"/proc/self/root/file", b"/proc/self/cwd",
)  # fmt: skip
_VALUES = (
    0, 1, 7, 511, 512, 513, 0o777, 0o7777, 0o177777, 65534, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**33,
    2**63 - 1, 2**63, 2**64,
)  # fmt: skip
_RECORD_VALUES = (
    b"", b"0", b"1", b"-1", b"512", b"1e99", b"1.5", b"-1.999999999999", b"9" * 20, b"9" * 30, b"4294967295",
    b"4294967294", b"1_0", b"+5", b"nan", b"a\0b", b"\xff", b"x" * 3000,
)  # fmt: skip
_XATTRS = (
    b"user.x", b"trusted.t", b"security.capability", b"security.selinux", b"system.posix_acl_access",
    b"system.posix_acl_default", b"user.rootlesscontainers", b"", b"user.", b"nonsense", b"user." + b"n" * 300,
    b"trusted.overlay.opaque", b"user.a=b",
)  # fmt: skip
_SPARSE_VALUES = (b"0", b"1", b"0,1", b"0,1,5,2", b"1,0", b"0,512,1024,512", b"7", b"99999999999", b"-1", b"x,y")
_SPARSE_KEYS = (b"major", b"minor", b"name", b"realsize", b"size", b"map", b"numblocks", b"offset", b"numbytes")


def split(tar: bytes) -> list[Member]:
    """The members of a well-formed archive, extended headers among them; without the trailer."""
    members = []
    at = 0
    while at + BLOCK <= len(tar) and tar[at : at + BLOCK].strip(b"\0"):
        header = tar[at : at + BLOCK]
        size = int(header[124:136].rstrip(b"\0 ") or b"0", 8) if header[156:157] not in b"123456" else 0
        end = at + BLOCK + size + -size % BLOCK
        members.append((header, tar[at + BLOCK : end]))
        at = end
    return members


def mutate(rng: Random, seed: list[Member], other: list[Member]) -> bytes:
    """An archive of ``seed`` with some members changed, made, moved or lost."""
    members = list(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        rng.choice(_MUTATIONS)(rng, members, other)
    tar = b"".join([part for member in members for part in member])
    tail = rng.randrange(40)
    if tail == 0:
        return tar
    if tail == 1:
        return bytes_mutations.mutate(rng, tar, tar)
    if tail == 2:
        return tar + bytes(BLOCK)
    if tail == 3:
        return tar + bytes(2 * BLOCK) + rng.randbytes(700)
    return tar + bytes(2 * BLOCK)


def header(name: bytes, type_: bytes, *, link: bytes = b"", size: int = 0, mode: int = 0o644) -> bytes:
    """A USTAR header."""
    block = bytearray(BLOCK)
    block[0 : len(name[:100])] = name[:100]
    block[100:136] = b"%07o\0%07o\0%07o\0%011o\0" % (mode, 0, 0, size)
    block[136:148] = b"%011o\0" % 1_400_000_000
    block[156:157] = type_
    block[157 : 157 + len(link[:100])] = link[:100]
    block[257:265] = b"ustar\x0000"
    return _summed(block)


def _summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _any(rng: Random, members: list[Member]) -> int:
    return rng.randrange(len(members)) if members else -1


def _name(rng: Random) -> bytes:
    return rng.choice(_LONG_NAMES) if rng.randrange(400) == 0 else rng.choice(NAMES)


def _set_name(rng: Random, members: list[Member], other: list[Member]) -> None:
    _put_text(rng, members, _name(rng), 0, b"path", b"L")


def _set_link(rng: Random, members: list[Member], other: list[Member]) -> None:
    _put_text(rng, members, rng.choice(LINKS), 157, b"linkpath", b"K")


def _put_text(rng: Random, members: list[Member], text: bytes, at: int, key: bytes, gnu: bytes) -> None:
    place = _any(rng, members)
    if place < 0:
        return
    block, content = members[place]
    if len(text) <= 100 and rng.randrange(4):
        changed = bytearray(block)
        changed[at : at + 100] = text.ljust(100, b"\0")
        if at == 0:
            changed[345:500] = bytes(155)
        members[place] = _summed(changed), content
    elif rng.randrange(2):
        members.insert(place, _extended(b"x", _record(key, text)))
    else:
        members.insert(place, _extended(gnu, text + b"\0"))


def _set_type(rng: Random, members: list[Member], other: list[Member]) -> None:
    place = _any(rng, members)
    if place >= 0:
        block = bytearray(members[place][0])
        block[156:157] = rng.choice(_TYPES)
        members[place] = _summed(block), members[place][1]


def _set_number(rng: Random, members: list[Member], other: list[Member]) -> None:
    place = _any(rng, members)
    if place < 0:
        return
    at, width = rng.choice(_ALL_NUMBERS)
    block = bytearray(members[place][0])
    value = rng.choice(_VALUES)
    kind = rng.randrange(6)
    if kind <= 2:
        text = b"%0*o\0" % (width - 1, value)
        field = text[-width:] if len(text) > width else text.rjust(width, b"0")
    elif kind == 3:
        field = (b"\x80" + value.to_bytes(16, "big")[-(width - 1) :])[:width] if width > 1 else b"\x80"
    elif kind == 4:
        field = (-value - 1).to_bytes(16, "big", signed=True)[-width:]
    else:
        field = rng.choice((b"", b"-1", b" 7", b"9", b"1_0", b"+1", b"0x1", b"\xff\xff", b"zzz")).ljust(width, b"\0")
    block[at : at + width] = field[:width].ljust(width, b"\0")
    members[place] = _summed(block), members[place][1]


def _flip_header(rng: Random, members: list[Member], other: list[Member]) -> None:
    place = _any(rng, members)
    if place >= 0:
        block = bytearray(members[place][0])
        for _ in range(rng.randrange(1, 4)):
            block[rng.randrange(BLOCK)] = rng.randrange(256)
        members[place] = _summed(block), members[place][1]


def _flip_content(rng: Random, members: list[Member], other: list[Member]) -> None:
    place = _any(rng, members)
    if place >= 0 and members[place][1]:
        block, content = members[place]
        members[place] = block, bytes_mutations.mutate(rng, content, block)


def _make_member(rng: Random, members: list[Member], other: list[Member]) -> None:
    name, type_ = _name(rng), rng.choice(_TYPES)
    link = rng.choice(LINKS) if type_ in b"12" else b""
    content = b"content" if type_ in b"0\x007" and rng.randrange(2) else b""
    place = rng.randrange(len(members) + 1)
    made = [(header(name, type_, link=link, size=len(content)), content + bytes(-len(content) % BLOCK))]
    records = b""
    if len(name) > 100 or b"\0" in name:
        records += _record(b"path", name)
    if len(link) > 100 or b"\0" in link:
        records += _record(b"linkpath", link)
    if records:
        made.insert(0, _extended(b"x", records))
    members[place:place] = made


def _make_records(rng: Random, members: list[Member], other: list[Member]) -> None:
    body = b"".join(_hostile_record(rng) for _ in range(rng.randrange(1, 4)))
    place = rng.randrange(len(members) + 1)
    members.insert(place, _extended(rng.choice((b"x", b"x", b"x", b"g", b"X")), body))


def _hostile_record(rng: Random) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        return _record(rng.choice((b"path", b"linkpath", b"GNU.sparse.name")), rng.choice(NAMES + LINKS))
    if kind in (1, 2):
        return _record(b"SCHILY.xattr." + rng.choice(_XATTRS), rng.choice(_RECORD_VALUES))
    if kind == 3:
        return _record(b"GNU.sparse." + rng.choice(_SPARSE_KEYS), rng.choice(_SPARSE_VALUES))
    if kind in (4, 5):
        return _record(rng.choice((b"size", b"uid", b"gid", b"mtime", b"atime", b"ctime")), rng.choice(_RECORD_VALUES))
    good = _record(rng.choice((b"path", b"comment", b"", b"hdrcharset")), rng.choice(_RECORD_VALUES))
    if kind == 6:
        return rng.choice((b"0", b"3", b"-5", b"99", b"999999999999", b" 12", b"0x9", b"")) + good.lstrip(b"0123456789")
    return bytes_mutations.mutate(rng, good, good)


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _extended(type_: bytes, body: bytes) -> Member:
    return header(b"PaxHeaders.0/x", type_, size=len(body)), body + bytes(-len(body) % BLOCK)


def _copy(rng: Random, members: list[Member], other: list[Member]) -> None:
    source = members if rng.randrange(2) else other
    if source:
        members.insert(rng.randrange(len(members) + 1), rng.choice(source))


def _drop(rng: Random, members: list[Member], other: list[Member]) -> None:
    if members:
        members.pop(_any(rng, members))


def _move(rng: Random, members: list[Member], other: list[Member]) -> None:
    if members:
        moved = members.pop(_any(rng, members))
        members.insert(rng.randrange(len(members) + 1), moved)


def _zero_block(rng: Random, members: list[Member], other: list[Member]) -> None:
    members.insert(rng.randrange(len(members) + 1), (bytes(BLOCK), b""))


_Mutation = Callable[[Random, list[Member], list[Member]], None]
_MUTATIONS: tuple[_Mutation, ...] = (
    *(_set_name,) * 4, *(_set_link,) * 3, *(_set_type,) * 3,
    *(_set_number,) * 4, *(_make_member,) * 6, *(_make_records,) * 4, *(_copy,) * 2, *(_move,) * 2, _flip_header,
    _flip_header, _flip_content, _drop, _zero_block,
)  # fmt: skip
