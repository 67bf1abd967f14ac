"""``user.rootlesscontainers``: who owns a file where nobody may chown (rootlesscontaine.rs, umoci.md B5).

The value is the protobuf message ``Resource { uint32 uid = 1; uint32 gid = 2; }``.
"""

from __future__ import annotations

from typing import Final

from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.layer.idmap import IdMap
from layerfarm.jobs.mtree.model import Xattrs

XATTR_NAME: Final = b"user.rootlesscontainers"
NO_OWNER: Final = 0xFFFFFFFF
"""uint32(-1): this id is whatever the file has."""


def encode_owner(uid: int, gid: int) -> bytes:
    """The xattr's value. An id 0 becomes NO_OWNER, as umoci writes it: the file is the container root's already."""
    return b"\x08" + _varint(uid or NO_OWNER) + b"\x10" + _varint(gid or NO_OWNER)


def decode_owner(value: bytes) -> tuple[int, int]:
    """uid and gid; either may be NO_OWNER, and is 0 where the message leaves it out, as proto3 does with a zero.

    Raises:
        MalformedLayer: not such a message.
    """
    owner = [0, 0]
    at = 0
    while at < len(value):
        tag = value[at]
        number, at = _read_varint(value, at + 1)
        if tag not in (0x08, 0x10):
            raise MalformedLayer("xattr user.rootlesscontainers is not an owner", where=value.hex()[:100])
        owner[0 if tag == 0x08 else 1] = number & 0xFFFFFFFF
    return owner[0], owner[1]


def owner_in_image(
    uid: int, gid: int, xattrs: Xattrs, uid_map: IdMap, gid_map: IdMap, *, rootless: bool
) -> tuple[int, int, Xattrs]:
    """The owner in the image of an entry of ``uid`` and ``gid`` on disk, and its xattrs without the recorded owner.

    In a rootless tree that is the recorded owner, and root where none is recorded: its files belong to whoever
    unpacked or made them, whatever the id maps say (umoci's ``unmapHeader``).

    Raises:
        UnmappedId: not rootless, and an id has no place in its map.
        MalformedLayer: the recorded owner is none.
    """
    if not rootless:
        return uid_map.to_container(uid), gid_map.to_container(gid), xattrs
    value = dict(xattrs).get(XATTR_NAME)
    if value is None:
        return 0, 0, xattrs
    uid, gid = (0 if recorded == NO_OWNER else recorded for recorded in decode_owner(value))
    return uid, gid, tuple(pair for pair in xattrs if pair[0] != XATTR_NAME)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedLayer("xattr user.rootlesscontainers is cut short", where=data.hex()[:100])
