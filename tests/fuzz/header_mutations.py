"""Tar archives made field by field: every dialect, with each field now and then as no writer should write it.

Checksums are right unless they are what is wrong, so that readers get to the fields.
"""

from __future__ import annotations

from random import Random

from tests.fuzz import bytes_mutations
from tests.fuzz.tar_mutations import BLOCK, LINKS, NAMES

_MAGICS = (
    *(b"ustar\x0000",) * 5, *(b"ustar  \0",) * 4, bytes(8), b"ustar\0  ", b"ustar \x0000", b"ustar \0\0",
    b"USTAR\x0000", b"ustar\0\xff\xff",
)  # fmt: skip
_ODD_TYPES = tuple(bytes((character,)) for character in b"7SDVMNA9 \xff")
_TYPES = (
    *(b"0",) * 12, *(b"\0",) * 6, *(b"5", b"2", b"1", b"3", b"4", b"6") * 3, *_ODD_TYPES, b"x", b"g", b"L", b"K",
)  # fmt: skip
_PREFIXES = (
    b"", b"dir", b"usr/share/doc", b"p" * 155, b"p" * 131, b"dir/\xc3\xa9", b"00000000007", b"00000000007\0",
    b"00000000007\x0000000000006\0", b"00000000007 usr", b"\x80" + bytes(10) + b"\x07", b"\xff" * 12, b"\0hidden",
    b"a\0b", b"/", b"dir/", b"7" * 155, b"\x80" + b"\xff" * 23, b"p" * 131 + b"00000000007 00000000006 ",
)  # fmt: skip
_VALUES = (0, 1, 3, 7, 8, 511, 512, 0o644, 0o7777, 0o107777, 1000, 65535, 2**21, 2**31, 2**32 - 1, 2**33 - 1, 2**33,
           2**36, 2**56, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
_NO_NUMBERS = (
    b"-1", b"+7", b"0x7", b"1_0", b"8", b"9", b"7 7", b"7\0x", b"\xb2", b"x", b"7x", b"\n7", b"7\t", b"0o7", b"\x7f7",
    b"7.0", b" ", b"", b"\0 7", b"\0\0\0007 \0",
)  # fmt: skip
_MODE, _UID, _GID, _SIZE, _MTIME = (100, 8), (108, 8), (116, 8), (124, 12), (136, 12)
_MAJOR, _MINOR = (329, 8), (337, 8)
_ATIME, _CTIME, _STAR_ATIME, _STAR_CTIME = (345, 12), (357, 12), (476, 12), (488, 12)
_REALSIZE, _MORE = (483, 12), (482, 1)
_NUMBERS = (
    _MODE, _MODE, _UID, _UID, _GID, _SIZE, _SIZE, _MTIME, _MTIME, _MAJOR, _MINOR, _ATIME, _CTIME, _STAR_ATIME,
    _STAR_CTIME,
)  # fmt: skip
_INTEGERS = (
    b"0", b"1", b"3", b"5", b"7", b"1000", b"4294967295", b"4294967296", b"9223372036854775807",
    b"9223372036854775808", b"-1", b"-3", b"-9223372036854775808", b"-9223372036854775809", b"+7", b"007",
    b"0" * 30 + b"7", b"", b" 7", b"7 ", b"7\n", b"1_0", b"0x7", b"7.0", b"1e3", b"x", b"\xb2", b"--1", b"-0", b"+",
    b"-",
)  # fmt: skip
_TIMES = (
    b"5", b"5.25", b"5.", b".5", b"-5.25", b"-0.5", b"-0.0000000001", b"+7.5", b"7.123456789123", b"1.5x", b"1.-5",
    b"1.+5", b"1.2.3", b"1,5", b"1e3", b"1e-09", b"9223372036854775807.999999999", b"9223372036854775808",
    b"-9223372036854775808", b"-9223372036854775808.5", b"-9223372036854775809", b"0" * 25 + b"1", b"", b"nan",
    b"1. 5", b"1.5 ", b"253402300800", b"-62135596800", b"-62135596801",
)  # fmt: skip
_TEXTS = (b"p", b"p/q", b"p/", b"", b"a\0b", b"\0", b"\xff\xfe", b"n" * 101, b"n" * 300, b"/p", b"./p", b"a=b", b"a\nb")
_XATTRS = (
    *(b"user.x", b"user.a=b", b"trusted.overlay.opaque", b"security.capability", b"user.\xff") * 5, b"", b"user.a\0b",
)  # fmt: skip
_OTHER_KEYS = (
    b"comment", b"hdrcharset", b"LIBARCHIVE.xattr.user.x", b"SCHILY.dev", b"SCHILY.xattr", b"\xff", b"", b"a\0b",
)  # fmt: skip
_MAPS = (b"0,3", b"1,3", b"5,3", b"0,1,5,2", b"0,2,1,1", b"5,2,0,1", b"0,0,5,3", b"5,0,0,3", b"0,3,8,0", b"0,3,9,0",
         b"9,0,0,3", b"", b",", b"0", b"0,3,", b"-1,3", b"0,-3", b"0, 3", b"+0,+3", b"x,y", b"0,4", b"0,2",
         b"9223372036854775807,3", b"0,3,9223372036854775807,0", b"0" * 30 + b",3")  # fmt: skip
_VERSIONS = (b"0", b"0", b"0", b"1", b"1", b"2", b"", b"00", b"+1")
_KEYS = b"major minor name realsize size map numblocks offset numbytes".split()


def mutate(rng: Random) -> bytes:
    """An archive of one to four entries, with the headers before each and its content."""
    tar = b"".join(_entry(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4))))
    end = rng.randrange(60)
    if end == 0:
        return tar[: rng.randrange(len(tar) + 1)]
    if end == 1:
        return bytes_mutations.mutate(rng, tar, tar)
    if end == 2:
        return tar + bytes(BLOCK) + rng.choice((b"", b"\0" * 511, b"x" * BLOCK))
    if end == 3:
        return tar + bytes(rng.choice((1, 2, 3)) * BLOCK) + rng.randbytes(rng.choice((1, 511, 512, 700)))
    return tar if end < 7 else tar + bytes(2 * BLOCK)


def _entry(rng: Random) -> bytes:
    headers = []
    if rng.random() < 0.2:
        headers.append(_extended(rng, rng.choice((b"L", b"L", b"K")), _long_text(rng)))
    for _ in range(rng.choice((0, 0, 0, 1, 1, 1, 2))):
        body = b"".join(_record(rng, *_key_and_value(rng)) for _ in range(rng.choice((0, 1, 1, 2, 3, 4))))
        headers.append(_extended(rng, rng.choice((*(b"x",) * 14, b"g", b"g", b"X")), _padded(rng, body)))
    rng.shuffle(headers)
    sparse = rng.random()
    if sparse < 0.08:
        return b"".join(headers) + _old_sparse(rng)
    if sparse < 0.25:
        return b"".join(headers[:1]) + _pax_sparse(rng)
    flag, content = rng.choice(_TYPES), rng.choice((b"", b"abc", b"abc", b"c" * 512, b"c" * 700))
    block = _block(rng, flag, len(content))
    # Some types ignore the size: any data there would be the next header.
    return b"".join((*headers, block, b"" if flag in b"123456" and rng.randrange(20) else _whole(rng, content)))


def _long_text(rng: Random) -> bytes:
    text = rng.choice(_TEXTS + NAMES + LINKS)
    return text + rng.choice((b"\0", b"\0", b"", b"\0x"))


def _padded(rng: Random, body: bytes) -> bytes:
    kind = rng.randrange(300)
    if kind == 0:
        return body + bytes(rng.choice((1, 9)))
    if kind == 1:
        return bytes_mutations.mutate(rng, body, body)
    return body


# --- headers -------------------------------------------------------------------------------------


def _block(rng: Random, flag: bytes, size: int, *fields: tuple[tuple[int, int], bytes]) -> bytes:
    """A header with at most three wrong fields."""
    block = bytearray(BLOCK)
    block[257:265] = rng.choice(_MAGICS)
    block[0:100] = _text(rng, rng.choice(NAMES) if rng.random() < 0.3 else b"f%d" % rng.randrange(9), 100)
    if flag in b"12" or rng.random() < 0.1:
        block[157:257] = _text(rng, rng.choice(LINKS), 100)
    values = ((_MODE, 0o644), (_UID, 0), (_GID, 5), (_SIZE, size), (_MTIME, 1_400_000_000))
    for (at, width), value in values:
        block[at : at + width] = _number(rng, width, value)
    if flag in b"34" or rng.random() < 0.1:
        block[329:345] = _number(rng, 8, 1) + _number(rng, 8, 3)
    if rng.random() < 0.25:
        prefix = rng.choice(_PREFIXES)
        block[345 : 345 + len(prefix)] = prefix
    for (at, width), field in fields:
        block[at : at + width] = field
    for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 1, 2))):
        at, width = rng.choice(_NUMBERS)
        block[at : at + width] = _any_number(rng, width)
    if rng.random() < 0.06:
        block[508:512] = rng.choice((b"tar\0", b"tar\0", b"tar ", b"xtar"))
    if rng.random() < 0.01:
        block[rng.randrange(BLOCK)] = rng.randrange(256)
    block[156:157] = flag
    return _summed(rng, block)


def _summed(rng: Random, block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    total = sum(block)
    kind = rng.randrange(150)
    if kind == 0:
        total = sum(byte - 256 if byte > 127 else byte for byte in block)
    if kind == 1:
        total += rng.choice((1, -1, 256))
    forms = (b"%06o\0 ", b"%06o\0 ", b"%06o \0", b"%07o\0", b" %06o\0", b"%08o", b"\0\0%06o")
    block[148:156] = (rng.choice(forms) % max(total, 0))[:8] if kind != 2 else rng.choice(_NO_NUMBERS).ljust(8, b"\0")
    return bytes(block)


def _text(rng: Random, text: bytes, width: int) -> bytes:
    kind = rng.randrange(12)
    if kind == 0:
        text = text.ljust(width, b"n")
    if kind == 1:
        text += b"\0behind"
    return text[:width].ljust(width, b"\0")


def _number(rng: Random, width: int, value: int) -> bytes:
    """The value in a form that readers take."""
    digits = b"%o" % value
    forms = (
        digits.rjust(width - 1, b"0") + b"\0",
        digits.rjust(width - 1, b"0") + b"\0",
        digits.rjust(width - 1, b"0") + b" ",
        digits.rjust(width, b"0"),
        digits.rjust(width - 1) + b"\0",
        (digits + b" ").ljust(width, b"\0"),
        (b"\0 " + digits).ljust(width, b"\0"),
        (digits + b"\0junk")[:width].ljust(width, b"\0"),
        b"\x80" + value.to_bytes(width - 1, "big"),
    )
    return forms[rng.randrange(len(forms)) if rng.random() < 0.3 else 0]


def _any_number(rng: Random, width: int) -> bytes:
    kind = rng.randrange(6)
    value = rng.choice(_VALUES)
    if kind == 0:
        return rng.choice(_NO_NUMBERS)[:width].ljust(width, b"\0")
    if kind == 1:
        return rng.choice(_NO_NUMBERS)[:width].rjust(width)
    if kind == 2:
        return (b"%o" % value).rjust(width, b"0")[-width:]
    if kind == 3:
        return b"\x80" + value.to_bytes(16, "big")[-(width - 1) :]
    if kind == 4:
        return (-1 - value).to_bytes(16, "big", signed=True)[-width:]
    rest = width - 1
    return bytes((rng.randrange(0x80, 0x100),)) + rng.choice((bytes(rest), b"\xff" * rest, rng.randbytes(rest)))


def _extended(rng: Random, flag: bytes, body: bytes) -> bytes:
    size = len(body) if rng.randrange(200) else max(len(body) + rng.choice((-1, 1, 512)), 0)
    if rng.randrange(12):
        block = bytearray(BLOCK)
        block[0:14] = b"PaxHeaders.0/x"
        block[100:156] = b"0000644\x000000000\x000000000\x00%011o\x0000000000000\0        " % size
        block[156:157] = flag
        block[257:265] = rng.choice((b"ustar\x0000", b"ustar  \0"))
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block) + _whole(rng, body)
    return _block(rng, flag, size) + _whole(rng, body)


def _whole(rng: Random, content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK) if rng.randrange(150) else content


# --- records -------------------------------------------------------------------------------------


def _key_and_value(rng: Random) -> tuple[bytes, bytes]:
    kind = rng.randrange(16)
    if kind <= 3:
        return rng.choice((b"path", b"path", b"linkpath", b"uname", b"gname")), rng.choice(_TEXTS + NAMES)
    if kind <= 6:
        return rng.choice((b"uid", b"gid")), _usual(rng, b"7", _INTEGERS)
    if kind == 7:
        return b"size", _usual(rng, b"3", _INTEGERS)
    if kind <= 11:
        return rng.choice((b"mtime", b"mtime", b"atime", b"ctime")), _usual(rng, b"6.5", _TIMES)
    if kind == 12:
        return b"GNU.sparse." + rng.choice(_KEYS), rng.choice(_MAPS + _INTEGERS + _TEXTS)
    if kind == 13:
        return rng.choice(_OTHER_KEYS), rng.choice(_TEXTS)
    return b"SCHILY.xattr." + rng.choice(_XATTRS), rng.choice((*_TEXTS, b"v", bytes(range(256))))


def _usual(rng: Random, value: bytes, others: tuple[bytes, ...]) -> bytes:
    return value if rng.random() < 0.7 else rng.choice(others)


def _record(rng: Random, key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    length = rest + len(b"%d" % length)
    record = b"%d %b=%b\n" % (length, key, value)
    kind = rng.randrange(300)
    if kind == 0:
        near = b"+%d" % (length + 1), b"%d" % (length + 1), b"%d" % (length - 1), b"0" * 15 + b"%d" % (length + 15)
        lengths = *near, b"", b"0", b"4", b"5", b"-5", b" 9", b"x", b"9223372036854775807", b"99999999999999999999"
        return record.replace(b"%d" % length, rng.choice(lengths), 1)
    if kind == 1:
        return record[:-1] + rng.choice((b"", b"\0", b" ", b"\r\n"))
    if kind == 2:
        return record.replace(b"=", rng.choice((b"", b" ", b"==")), 1)
    return record


# --- sparse files --------------------------------------------------------------------------------


def _old_sparse(rng: Random) -> bytes:
    """GNU tar's own format: four areas in the header, 21 in each block behind it."""
    areas = _areas(rng)
    data, realsize = _data_and_size(rng, areas)
    fields = [((257, 8), b"ustar  \0"), ((345, 155), bytes(155)), (_REALSIZE, _sparse_number(rng, realsize))]
    fields += [((386 + 24 * at, 24), _pair(rng, pair)) for at, pair in enumerate(areas[:4])]
    blocks = []
    for begin in range(4, len(areas), 21):
        part = b"".join(_pair(rng, pair) for pair in areas[begin : begin + 21])
        blocks.append(part.ljust(504, b"\0") + (b"\1" if begin + 21 < len(areas) else b"\0") + bytes(7))
    if blocks or not rng.randrange(30):
        fields.append((_MORE, b"\1"))
    return _block(rng, b"S", len(data), *fields) + b"".join(blocks) + _whole(rng, data)


def _pair(rng: Random, pair: tuple[int, int]) -> bytes:
    return _sparse_number(rng, pair[0]) + _sparse_number(rng, pair[1])


def _sparse_number(rng: Random, value: int) -> bytes:
    return _number(rng, 12, value) if rng.randrange(100) else _any_number(rng, 12)


def _areas(rng: Random) -> list[tuple[int, int]]:
    areas, at = [], 0
    for _ in range(rng.choice((0, 1, 1, 2, 3, 4, 5, 25, 30))):
        at += rng.choice((0, 1, 5, 512, 1000))
        length = rng.choice((0, 1, 3, 512))
        areas.append((at, length))
        at += length
    if not rng.randrange(20):
        rng.shuffle(areas)
    return areas


def _data_and_size(rng: Random, areas: list[tuple[int, int]]) -> tuple[bytes, int]:
    """The content of the areas, and the size of the whole file; now and then one that does not fit."""
    stored = sum(length for _, length in areas)
    end = max((offset + length for offset, length in areas), default=0)
    if not rng.randrange(20):
        stored = max(stored + rng.choice((-1, 1, 512)), 0)
    return b"d" * stored, max(end + rng.choice((0, 0, 0, 1, 512, 5000, 5000, -1)), 0) if rng.randrange(40) else 2**62


def _pax_sparse(rng: Random) -> bytes:
    """Versions 0.0 and 0.1, which have the map in records, and 1.0, which has it before the content."""
    areas = _areas(rng)
    data, realsize = _data_and_size(rng, areas)
    version = rng.choice((b"0.0", b"0.1", b"0.1", b"1.0", b"1.0"))
    size = b"%d" % realsize if rng.randrange(12) else rng.choice(_INTEGERS)
    count = b"%d" % len(areas) if rng.randrange(15) else rng.choice(_INTEGERS)
    records: list[tuple[bytes, bytes]] = [(rng.choice((b"size", b"realsize")), size)]
    if rng.randrange(3):
        records.append((b"name", rng.choice(_TEXTS)))
    if version == b"1.0":
        lines = [count, *(b"%d" % number for pair in areas for number in pair)]
        if not rng.randrange(15):
            lines[rng.randrange(len(lines))] = rng.choice(_INTEGERS)
        text = b"\n".join(lines) + (b"\n" if rng.randrange(20) else b"")
        data = text + bytes(-len(text) % BLOCK) + data
    elif version == b"0.1":
        pairs = b",".join(b"%d,%d" % pair for pair in areas)
        records += [(b"map", pairs if rng.randrange(10) else rng.choice(_MAPS)), (b"numblocks", count)]
    else:
        records.append((b"numblocks", count))
        for offset, length in areas:
            records += [(b"offset", b"%d" % offset), (b"numbytes", b"%d" % length)]
        if not rng.randrange(15):
            rng.shuffle(records)
    if version == b"1.0" or not rng.randrange(3):
        records += zip((b"major", b"minor"), version.split(b"."), strict=True)
    if not rng.randrange(20):
        records += [(rng.choice((b"major", b"minor")), rng.choice(_VERSIONS))]
    if not rng.randrange(30):
        records.pop(rng.randrange(len(records)))
    body = b"".join(_record(rng, b"GNU.sparse." + key, value) for key, value in records)
    if not rng.randrange(6):
        body += _record(rng, *_key_and_value(rng))
    after = _extended(rng, b"L", _long_text(rng)) if not rng.randrange(12) else b""
    flag = b"0" if rng.randrange(8) else rng.choice((b"\0", b"5", b"2", *_ODD_TYPES))
    return _extended(rng, b"x", body) + after + _block(rng, flag, len(data)) + _whole(rng, data)
