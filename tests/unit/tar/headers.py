"""Single blocks of tar headers, by our own encoder, with fields that no encoder writes."""

from __future__ import annotations

from layerfarm.jobs.tar.pax import encode_records
from layerfarm.jobs.tar.writer import Header, encode_header


def block(*fields: tuple[int, bytes]) -> bytes:
    """A header block with fields overwritten, its checksum right."""
    made = bytearray(encode_header(Header(b"f", b"0", mtime=5)))
    for at, field in fields:
        made[at : at + len(field)] = field
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def extended(flag: bytes, body: bytes) -> bytes:
    """An extended header of the type ``flag``."""
    return block((156, flag), (124, b"%011o\0" % len(body))) + body + bytes(-len(body) % 512)


def records(*pairs: tuple[bytes, bytes]) -> bytes:
    """A PAX header with these records."""
    return extended(b"x", encode_records(pairs))
